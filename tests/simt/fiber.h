// A fiber: a function on a stack of its own that runs until it gives the processor back.
#pragma once

#include <cstddef>
#include <functional>

namespace simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next `resume` begin `work`. A fiber whose last work never returned may be started again: its
  // stack is simply used anew, so such work must own nothing.
  void start(std::function<void()> work);

  // Runs the fiber until it calls `pause` or its work returns; from outside any fiber.
  void resume();

  // Gives control back to whoever called `resume`; from inside the running fiber.
  static void pause();

 private:
  [[noreturn]] static void enter();

  std::function<void()> work_;
  std::byte* stack_;         // lowest address, with a guard page below it
  void* context_ = nullptr;  // while paused: stack pointer (by hand), or a ucontext_t
  void* begin_ = nullptr;    // the ucontext_t that begins the work
  void* tsan_ = nullptr;
  void* asan_ = nullptr;
};

}  // namespace simt
