// Changing from one stack to another.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>

#include <memory>
#endif

namespace emulated {

#if defined(__x86_64__)

// Saves the registers that a function must preserve, stores the stack pointer in *from, and goes on
// from `to`. This is not swapcontext, which asks the system for the signal mask and takes a hundred
// times as long.
extern "C" void reapx_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.weak reapx_switch_stack
.hidden reapx_switch_stack
.type reapx_switch_stack, @function
reapx_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size reapx_switch_stack, . - reapx_switch_stack
.popsection
)");

inline void switch_stack(void** from, void* to) { reapx_switch_stack(from, to); }

// What to switch to so that `enter`, which must not return, begins on that stack.
inline void* new_stack(unsigned char* stack, std::size_t bytes, void (*enter)()) {
  constexpr int saved = 6;
  void** top =
      reinterpret_cast<void**>((reinterpret_cast<std::uintptr_t>(stack) + bytes) & ~std::uintptr_t{15});
  top[-1] = nullptr;  // where enter would return to
  top[-2] = reinterpret_cast<void*>(enter);
  return top - 2 - saved;
}

#else

inline void switch_stack(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

// The context lies at the upper end of the stack that it describes.
inline void* new_stack(unsigned char* stack, std::size_t bytes, void (*enter)()) {
  void* place = stack + bytes - sizeof(ucontext_t);
  std::size_t room = bytes;
  std::align(alignof(ucontext_t), sizeof(ucontext_t), place = stack + bytes - sizeof(ucontext_t) - 64,
             room);
  auto* context = static_cast<ucontext_t*>(place);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = static_cast<std::size_t>(static_cast<unsigned char*>(place) - stack);
  context->uc_link = nullptr;
  makecontext(context, enter, 0);
  return context;
}

#endif

}  // namespace emulated
