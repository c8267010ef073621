// Fibers: stacks that a host thread switches between by hand. Each runs the same endless body, and rests where it switched away.
#pragma once

#include <cstddef>

namespace emu {

// Where a fiber rests: its stack pointer, or the context of ucontext where no assembly is at hand.
struct Fiber {
    void* rest = nullptr;
};

// Makes `fiber` begin `body` on stack number `which` at its next turn, whatever it did before; stacks are kept and reused.
void fiber_begin(Fiber& fiber, std::size_t which, void (*body)());

// EMU_UCONTEXT asks for the way of other processors, to try it on this one.
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(EMU_UCONTEXT)
#define EMU_BY_HAND
#endif

// Leaves `from`, and goes on where `to` rests.
#ifdef EMU_BY_HAND
extern "C" void emu_switch(void** from, void* to) __attribute__((visibility("hidden")));
inline void fiber_switch(Fiber& from, Fiber& to) { emu_switch(&from.rest, to.rest); }
#else
void fiber_switch(Fiber& from, Fiber& to);
#endif

// Whether a signal handler can leave a fiber by fiber_divert.
bool fiber_can_divert();

// Called by a signal handler with its ucontext: the thread goes on in `body`, on a small stack of its own, when the handler returns.
void fiber_divert(void* ucontext, void (*body)());

// Whether an address lies in the guard page of a fiber's stack.
bool fiber_overflowed(const void* at);

// How many bytes of stack a fiber has; a guard page lies below.
constexpr std::size_t FIBER_STACK = 64 * 1024;

}  // namespace emu
