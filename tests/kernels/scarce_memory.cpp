// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Preloaded into a process it counts what one module takes of memory, refuses it one block, and knows what the module
// has not given back. glibc alone: its own functions are called by their inner names.
#include <link.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {

struct Module {
  uintptr_t begin, end;
};

constexpr int kMost = 1 << 14;
std::atomic<uintptr_t> begin{0}, end{0};
std::atomic<long> calls{0}, refused_call{0}, refused_bytes{0}, live{0};
std::atomic_flag busy = ATOMIC_FLAG_INIT;
void* blocks[kMost];

int holds(dl_phdr_info* info, size_t, void* data) {
  Module* const module = static_cast<Module*>(data);
  uintptr_t low = UINTPTR_MAX, high = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD) continue;
    low = std::min<uintptr_t>(low, info->dlpi_addr + part.p_vaddr);
    high = std::max<uintptr_t>(high, info->dlpi_addr + part.p_vaddr + part.p_memsz);
  }
  if (module->begin < low || module->begin >= high) return 0;
  *module = {low, high};
  return 1;
}

void exchange(void* from, void* to) {
  while (busy.test_and_set(std::memory_order_acquire)) {
  }
  void** const place = std::find(blocks, blocks + kMost, from);
  if (place != blocks + kMost) {
    *place = to;
    live += to ? 1 : -1;
  }
  busy.clear(std::memory_order_release);
}

bool watched(const void* caller) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(caller);
  return address >= begin && address < end;
}

template <class Take>
void* take(const void* caller, size_t bytes, const Take& from_library) {
  const bool counts = watched(caller);
  if (counts && ++calls == refused_call) {
    refused_bytes = static_cast<long>(bytes);
    errno = ENOMEM;
    return nullptr;
  }
  void* const block = from_library();
  if (counts && block) exchange(nullptr, block);
  return block;
}

}  // namespace

extern "C" {

void* malloc(size_t bytes) {
  return take(__builtin_return_address(0), bytes, [=] { return __libc_malloc(bytes); });
}

void* aligned_alloc(size_t alignment, size_t bytes) {
  return take(__builtin_return_address(0), bytes, [=] { return __libc_memalign(alignment, bytes); });
}

void free(void* block) {
  if (block && live) exchange(block, nullptr);
  __libc_free(block);
}

// Watch the module that holds this address, and refuse it so many-th block from now on; 0 for none.
void scarce_watch(void* inside, long call) {
  Module module{reinterpret_cast<uintptr_t>(inside), 0};
  end = 0;
  calls = refused_bytes = live = 0;
  std::fill(blocks, blocks + kMost, nullptr);
  refused_call = call;
  dl_iterate_phdr(holds, &module);
  begin = module.begin;
  end = module.end;
}

void scarce_ignore() { end = 0; }
long scarce_calls() { return calls; }
long scarce_refused() { return refused_bytes; }
long scarce_live() { return live; }
}
