// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Containers that throw OutOfMemory. Not for the levels, which share no templates.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "common/memory.h"

namespace kestrel {

template <class T>
struct Allocator {
  using value_type = T;

  Allocator() = default;
  template <class Other>
  Allocator(const Allocator<Other>&) {}

  T* allocate(size_t count) {
    const int64_t bytes = static_cast<int64_t>(count * sizeof(T));
    if (void* const data = std::malloc(count * sizeof(T))) return static_cast<T*>(data);
    throw OutOfMemory(bytes);
  }
  void deallocate(T* data, size_t) { std::free(data); }

  friend bool operator==(const Allocator&, const Allocator&) { return true; }
  friend bool operator!=(const Allocator&, const Allocator&) { return false; }
};

template <class T>
using Array = std::vector<T, Allocator<T>>;

struct Free {
  void operator()(void* data) const { std::free(data); }
};

// An array whose values are not set.
template <class T>
using Block = std::unique_ptr<T[], Free>;

template <class T>
Block<T> block(int64_t count) {
  return Block<T>(Allocator<T>().allocate(count));
}

}  // namespace kestrel
