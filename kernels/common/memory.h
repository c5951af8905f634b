// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// What the kernels take of memory beside their arguments. Where there is none a kernel ends with OutOfMemory, whether
// it met that in a parallel region, which no exception may leave, or outside of one.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>

namespace kestrel {

// What a kernel throws, and Python gets as MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  // kernel: as Python calls it.
  explicit OutOfMemory(int64_t wanted_bytes, const char* kernel = "");
  const char* what() const noexcept override;

  const int64_t bytes;

 private:
  char text_[128];
};

// The levels throw by this function: what they are compiled from shares no code with other levels.
[[noreturn]] void out_of_memory(int64_t bytes);

// Memory aligned for any vector, to be given to free(), or null. Compilers make use of that nothing else points to it.
__attribute__((malloc, assume_aligned(64))) void* acquire(int64_t bytes) noexcept;

namespace {

// Carries a failure to get memory out of a parallel region. All threads have to reach the loops that they share:
// those go on, do nothing, and after the region one exception is thrown.
class Shortage {
 public:
  // Whether any thread has met it.
  explicit operator bool() const { return __atomic_load_n(&bytes_, __ATOMIC_RELAXED) != 0; }

  void note(int64_t bytes) { __atomic_store_n(&bytes_, bytes, __ATOMIC_RELAXED); }

  // Call act(), which may throw OutOfMemory, in the region.
  template <class Action>
  void guard(const Action& act) {
    try {
      act();
    } catch (const OutOfMemory& error) {
      note(error.bytes);
    }
  }

  // To be called after the region.
  void raise() const {
    if (*this) out_of_memory(bytes_);
  }

 private:
  int64_t bytes_ = 0;
};

// Scratch memory of one call.
struct Scratch {
  explicit Scratch(int64_t bytes) : data(acquire(bytes)) {
    if (!data) out_of_memory(bytes);
  }
  // In a parallel region: without memory `data` is null, and `shortage` knows.
  Scratch(int64_t bytes, Shortage& shortage) : data(acquire(bytes)) {
    if (!data) shortage.note(bytes);
  }
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void clear(int64_t bytes) const {
    if (data) memset(data, 0, bytes);
  }
  float* floats() const { return static_cast<float*>(data); }
  int32_t* ints() const { return static_cast<int32_t*>(data); }
  uint16_t* halves() const { return static_cast<uint16_t*>(data); }

  void* const data;
};

}  // namespace
}  // namespace kestrel
