// Fibers by hand: a switch saves the registers that a function must preserve, and changes the stack pointer.
#include "fibers.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <vector>

namespace emu {
namespace {

// The ends of the stacks. They are mapped one by one and never given back; the lowest page of each is a guard.
std::vector<unsigned char*>& stacks() {
    static auto& all = *new std::vector<unsigned char*>;
    return all;
}

std::size_t guard_bytes() { return std::size_t(sysconf(_SC_PAGESIZE)); }

unsigned char* stack_end(std::size_t which) {
    while (stacks().size() <= which) {
        std::size_t guard = guard_bytes();
        void* at = mmap(nullptr, FIBER_STACK + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED || mprotect(at, guard, PROT_NONE) != 0) {
            std::perror("emulated driver: no memory for the stack of a fiber");
            std::abort();
        }
        stacks().push_back(static_cast<unsigned char*>(at) + guard + FIBER_STACK);
    }
    // Without these steps the tops of all stacks would share few lines of the first cache, which made switches four times as slow.
    return stacks()[which] - which % 32 * 128;
}

}  // namespace

bool fiber_overflowed(const void* at) {
    for (const unsigned char* end : stacks())
        if (at >= end - FIBER_STACK - guard_bytes() && at < end - FIBER_STACK) return true;
    return false;
}

#if defined(EMU_BY_HAND) && defined(__x86_64__)

// rdi = where to keep the old stack pointer, rsi = the new one.
__asm__(
    ".text\n.globl emu_switch\n.hidden emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n.size emu_switch,.-emu_switch\n");

void fiber_begin(Fiber& fiber, std::size_t which, void (*body)()) {
    // Six registers, the address that `ret` takes, and a return address of the body, which never returns.
    auto* at = reinterpret_cast<std::uintptr_t*>(stack_end(which)) - 8;
    for (int i = 0; i < 8; i++) at[i] = 0;
    at[6] = reinterpret_cast<std::uintptr_t>(body);
    fiber.rest = at;
}

#elif defined(EMU_BY_HAND)

// x0 = where to keep the old stack pointer, x1 = the new one.
__asm__(
    ".text\n.globl emu_switch\n.hidden emu_switch\n.type emu_switch,%function\nemu_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n.size emu_switch,.-emu_switch\n");

void fiber_begin(Fiber& fiber, std::size_t which, void (*body)()) {
    auto* at = reinterpret_cast<std::uintptr_t*>(stack_end(which)) - 20;
    for (int i = 0; i < 20; i++) at[i] = 0;
    at[11] = reinterpret_cast<std::uintptr_t>(body);
    fiber.rest = at;
}

#else

void fiber_begin(Fiber& fiber, std::size_t which, void (*body)()) {
    auto* context = static_cast<ucontext_t*>(fiber.rest);
    if (context == nullptr) fiber.rest = context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = stack_end(which) - FIBER_STACK;
    context->uc_stack.ss_size = FIBER_STACK;
    context->uc_link = nullptr;
    makecontext(context, body, 0);
}

#endif

#if defined(EMU_BY_HAND)

bool fiber_can_divert() { return true; }

void fiber_divert(void* context, void (*body)()) {
    alignas(16) static unsigned char landing[32 * 1024];
    auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
    auto end = reinterpret_cast<std::uintptr_t>(landing + sizeof landing);
#if defined(__x86_64__)
    // As after a call: the stack pointer is 8 below a multiple of 16.
    machine.gregs[REG_RSP] = static_cast<greg_t>(end - 24);
    machine.gregs[REG_RIP] = reinterpret_cast<greg_t>(body);
#else
    machine.sp = end - 16;
    machine.pc = reinterpret_cast<std::uintptr_t>(body);
#endif
}

#else

void fiber_switch(Fiber& from, Fiber& to) {
    if (from.rest == nullptr) from.rest = new ucontext_t;
    swapcontext(static_cast<ucontext_t*>(from.rest), static_cast<ucontext_t*>(to.rest));
}

bool fiber_can_divert() { return false; }

void fiber_divert(void*, void (*)()) {}

#endif

}  // namespace emu
