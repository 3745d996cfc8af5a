// Workspace of a kernel call: a std::vector whose large allocations ask for huge pages.
//
// A kernel touches each page of its workspace for the first time on every call. In pages of 4 KiB that
// costs more than the arithmetic on matrices of a few MiB (measured: 3 us a page on a virtual machine).
#pragma once

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace reapx {

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;
inline constexpr std::size_t kLine = 64;  // a vector load across two cache lines takes twice as long

template <class T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) {}

  T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    if (count > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_alloc();
    if (bytes < kHugePage / 2)
      return static_cast<T*>(check(std::aligned_alloc(kLine, (bytes / kLine + 1) * kLine)));
    const std::size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = check(std::aligned_alloc(kHugePage, rounded));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(memory, rounded, MADV_HUGEPAGE);  // only advice, which changes no result
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

// The same without initial values, for memory that threads fill.
template <class T>
struct RawAllocator : PageAllocator<T> {
  RawAllocator() = default;
  template <class U>
  RawAllocator(const RawAllocator<U>&) {}
  template <class U>
  struct rebind {
    using other = RawAllocator<U>;
  };
  template <class U>
  void construct(U* place) {
    ::new (static_cast<void*>(place)) U;
  }
  template <class U, class V>
  void construct(U* place, V&& value) {
    ::new (static_cast<void*>(place)) U(std::forward<V>(value));
  }
};

template <class T>
using RawBuffer = std::vector<T, RawAllocator<T>>;

// Scratch that the items of a Team::run pass on to each other, so that new memory is touched once for
// each thread and not for each item.
template <class T>
class Pool {
 public:
  explicit Pool(std::size_t count) : count_(count) {}

  // A buffer of the pool's size, with undefined contents.
  RawBuffer<T> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return RawBuffer<T>(count_);
    RawBuffer<T> buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void give(RawBuffer<T> buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  std::size_t count_;
  std::mutex mutex_;
  std::vector<RawBuffer<T>> free_;
};

}  // namespace reapx
