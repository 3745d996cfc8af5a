// Workspace of a kernel call: a std::vector whose large allocations ask for huge pages.
//
// A kernel touches each page of its workspace for the first time on every call. In pages of 4 KiB that
// costs more than the arithmetic on matrices of a few MiB (measured: 3 us a page on a virtual machine).
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace reapx {

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

template <class T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) {}

  T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    if (count > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_alloc();
    if (bytes < kHugePage / 2) return static_cast<T*>(check(std::malloc(bytes ? bytes : 1)));
    const std::size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = check(std::aligned_alloc(kHugePage, rounded));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(memory, rounded, MADV_HUGEPAGE);  // only advice: whether it is taken changes no result
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) { std::free(memory); }

  template <class U>
  bool operator==(const PageAllocator<U>&) const {
    return true;
  }

 private:
  static void* check(void* memory) {
    if (!memory) throw std::bad_alloc();
    return memory;
  }
};

template <class T>
using Buffer = std::vector<T, PageAllocator<T>>;

}  // namespace reapx
