// A team of threads that serves one kernel call.
//
// Team::run(items, work) calls work(item) once for each item in [0, items), on any of the threads,
// in any order, and returns when all are done. An item must write outputs that no other item of the
// same run reads or writes; then results do not depend on the number of threads. An exception thrown
// by an item is rethrown by run (the first one, where several throw).
//
// A run does not wait for threads that have not started on it. On a busy machine a thread may get a
// core only after milliseconds, and by then the others have done its share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

namespace reapx {

class Team {
 public:
  // Threads are started by the first run that has enough items for them.
  explicit Team(int64_t threads) : threads_(threads) {}
  int64_t threads() const { return threads_; }
  ~Team() {
    if (crew_) crew_->dismiss();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  void run(int64_t items, const std::function<void(int64_t)>& work) {
    if (threads_ <= 1 || items <= 1) {
      for (int64_t i = 0; i < items; ++i) work(i);
      return;
    }
    start(std::min(threads_, items) - 1);
    crew_->run(items, work);
  }

 private:
  // What the threads share. It lives as long as the last of them, so that a helper that comes too late
  // finds the crew dismissed, and the Team can end without waiting for it.
  class Crew {
   public:
    void run(int64_t items, const std::function<void(int64_t)>& work) {
      work_ = &work;
      items_ = items;
      error_ = nullptr;
      failed_.store(false, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      gate_.store(kOpen, std::memory_order_release);
      round_.fetch_add(1, std::memory_order_release);
      round_.notify_all();
      take();
      gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
      wait_while(gate_, [](int64_t inside) { return inside != 0; });
      if (error_) std::rethrow_exception(error_);
    }

    void serve() {
      int64_t seen = 0;
      for (;;) {
        seen = wait_while(round_, [seen](int64_t round) { return round == seen; });
        if (seen < 0) return;
        if (!enter()) continue;
        take();
        if (gate_.fetch_sub(kOne, std::memory_order_acq_rel) == kOne) gate_.notify_all();
      }
    }

    void dismiss() {
      round_.store(-1, std::memory_order_release);
      round_.notify_all();
    }

   private:
    // The gate counts the helpers inside a run, and whether more may enter.
    static constexpr int64_t kOpen = 1, kOne = 2;

    bool enter() {
      int64_t gate = gate_.load(std::memory_order_acquire);
      while (gate & kOpen)
        if (gate_.compare_exchange_weak(gate, gate + kOne, std::memory_order_acq_rel)) return true;
      return false;
    }

    // The next round often begins within microseconds, so this looks a few times before it sleeps.
    template <class Waiting>
    static int64_t wait_while(const std::atomic<int64_t>& value, Waiting waiting) {
      int64_t now = value.load(std::memory_order_acquire);
      for (int look = 0; look < 2000 && waiting(now); ++look) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        now = value.load(std::memory_order_acquire);
      }
      while (waiting(now)) {
        value.wait(now, std::memory_order_acquire);
        now = value.load(std::memory_order_acquire);
      }
      return now;
    }

    void take() {
      try {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) (*work_)(i);
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
        next_.store(items_, std::memory_order_relaxed);
      }
    }

    const std::function<void(int64_t)>* work_ = nullptr;
    int64_t items_ = 0;
    std::exception_ptr error_;
    std::atomic<bool> failed_{false};
    std::atomic<int64_t> next_{0}, gate_{0}, round_{0};
  };

  void start(int64_t helpers) {
    if (!crew_) crew_ = std::make_shared<Crew>();
    try {
      for (; helpers_ < helpers; ++helpers_) std::thread([crew = crew_] { crew->serve(); }).detach();
    } catch (const std::system_error&) {
      threads_ = 1 + helpers_;  // the system starts no more: those there are do all the work
    }
  }

  int64_t threads_, helpers_ = 0;
  std::shared_ptr<Crew> crew_;
};

// Runs `work(item, team)` once for each item. Items for which `large(item)` holds run one after
// another with all threads; the others run side by side, each on one thread.
template <class Large, class Work>
void run_tasks(Team& team, int64_t items, Large large, Work work) {
  std::vector<int64_t> small;
  for (int64_t i = 0; i < items; ++i) {
    if (large(i)) {
      work(i, team);
    } else {
      small.push_back(i);
    }
  }
  team.run(static_cast<int64_t>(small.size()), [&](int64_t i) {
    Team alone(1);
    work(small[static_cast<size_t>(i)], alone);
  });
}

template <class Large, class Work>
void run_tasks(int64_t threads, int64_t items, Large large, Work work) {
  Team team(threads);
  run_tasks(team, items, large, work);
}

}  // namespace reapx
