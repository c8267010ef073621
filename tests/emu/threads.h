// What kernels and the emulator have in common: where a thread is, what lanes do together, how kernels are registered. Nothing is included.
#pragma once

typedef decltype(sizeof(0)) size_t;

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {

// The part of a thread that kernels ask for.
struct Place {
    uint3 index;
    unsigned lane;
};

// The thread that runs, and the block and grid that it is part of. A thread sees the same values after each yield as before.
extern Place* current;
extern uint3 block_index;
extern dim3 block_size, grid_size;
extern unsigned char* dynamic_shared;

// What lanes do together; lanes of one warp that meet in different operations have made a mistake.
enum Meeting : unsigned { SYNCWARP = 1, SHUFFLE, SHUFFLE_XOR, SHUFFLE_DOWN, SHUFFLE_UP, BALLOT, MMA };

void barrier();
void meet(unsigned mask, Meeting what);
unsigned exchange(unsigned mask, Meeting what, unsigned bits, unsigned source);
unsigned ballot(unsigned mask, bool vote);

// Registers a kernel before main; `shared` and `shared_end` bound the __shared__ variables of its file, null where it has none.
struct Registration {
    Registration(const char* file, const char* name, size_t arguments, void (*run)(const void*), char* shared, char* shared_end);
};

}  // namespace emu

// griddepcontrol.wait. A kernel that may begin before the one in front has ended must call this in every thread.
void emu_after_the_kernel_before();

// cp.async with sixteen bytes, of which `bytes` are read and the rest become zeros; cp.async.commit_group; cp.async.wait_group. What was not
// waited for has not come (or, in reverse, comes at once).
void emu_copy_async(void* to, const void* from, int bytes);
void emu_copy_commit();
void emu_copy_wait(unsigned left);

// The product of a warp, mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: c += a b, fragments as block.cpp describes them.
void emu_mma_bf16(float* c, const unsigned* a, const unsigned* b);
