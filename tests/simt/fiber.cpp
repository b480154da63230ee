// Switching stacks: by hand on x86-64 (about 10 ns), by ucontext elsewhere. The sanitizers are told of every
// switch; otherwise they take a jump to another stack for an overflow of this one.
#include "fiber.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
// SIMT_UCONTEXT takes the portable way on x86-64 too: that is how it is tested.
#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_SWITCH_BY_HAND
#else
#include <ucontext.h>
#endif

namespace simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 256 * 1024;  // red zones between all variables
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr size_t kGuard = 4096;

// The one scheduler of an OS thread and the fiber it is running.
thread_local Fiber* running = nullptr;
thread_local void* scheduler_context = nullptr;
#if defined(__SANITIZE_ADDRESS__)
thread_local void* scheduler_asan = nullptr;
thread_local const void* scheduler_stack = nullptr;
thread_local size_t scheduler_stack_size = 0;
#endif
#if defined(SIMT_TSAN)
thread_local void* scheduler_tsan = nullptr;
#endif

}  // namespace

#if defined(SIMT_SWITCH_BY_HAND)

// Saves the callee-saved registers of the System V ABI on this stack and takes those of the other.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
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
.size simt_switch, . - simt_switch
)");

#else

extern "C" void simt_switch(void** save, void* load) {
  ucontext_t self;
  *save = &self;
  swapcontext(&self, static_cast<ucontext_t*>(load));
}

#endif

Fiber::Fiber() {
  void* memory =
      mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuard, PROT_NONE);
  stack_ = static_cast<std::byte*>(memory) + kGuard;
#if defined(SIMT_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
#if !defined(SIMT_SWITCH_BY_HAND)
  begin_ = new ucontext_t;
#endif
}

Fiber::~Fiber() {
#if defined(SIMT_TSAN)
  __tsan_destroy_fiber(tsan_);
#endif
#if !defined(SIMT_SWITCH_BY_HAND)
  delete static_cast<ucontext_t*>(begin_);
#endif
  munmap(stack_ - kGuard, kStack + kGuard);
}

void Fiber::start(std::function<void()> work) {
  work_ = std::move(work);
  asan_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStack);  // red zones of work that was given up
#endif
#if defined(SIMT_SWITCH_BY_HAND)
  // Six registers and the address that `ret` takes. A function begins 8 bytes below a multiple of 16.
  auto* top = reinterpret_cast<void**>(stack_ + kStack - 64);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
  context_ = top - 8;
#else
  auto* context = static_cast<ucontext_t*>(begin_);
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = kStack;
  context->uc_link = nullptr;
  makecontext(context, &Fiber::enter, 0);
  context_ = context;
#endif
}

void Fiber::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  running->work_();
  pause();
  __builtin_unreachable();
}

void Fiber::resume() {
  running = this;
#if defined(SIMT_TSAN)
  scheduler_tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_asan, stack_, kStack);
#endif
  simt_switch(&scheduler_context, context_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
#endif
  running = nullptr;
}

void Fiber::pause() {
  Fiber* self = running;
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self->asan_, scheduler_stack, scheduler_stack_size);
#endif
  simt_switch(&self->context_, scheduler_context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->asan_, &scheduler_stack, &scheduler_stack_size);
#endif
}

}  // namespace simt
