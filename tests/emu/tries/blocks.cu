// Tries of the emulator: barriers, shared memory, the grid, and kernels with mistakes.

struct BlockArgs {
    unsigned* out;
    int n, how;
};

// Each thread reads what the thread opposite wrote, through static and dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256) try_shared(const BlockArgs a) {
    __shared__ unsigned fixed[256];
    unsigned* dynamic = (unsigned*)emu_dynamic_shared();
    unsigned thread = threadIdx.x, n = blockDim.x;
    for (int round = 0; round < 3; round++) {
        fixed[thread] = thread + round;
        dynamic[thread] = thread * 1000 + round;
        __syncthreads();
        unsigned got = fixed[n - 1 - thread] + dynamic[n - 1 - thread];
        __syncthreads();
        a.out[(blockIdx.x * 3 + round) * n + thread] = got;
    }
}

// As above without the barrier: who runs later has not written yet.
extern "C" __global__ void try_race(const BlockArgs a) {
    __shared__ unsigned fixed[256];
    fixed[threadIdx.x] = threadIdx.x;
    a.out[threadIdx.x] = fixed[blockDim.x - 1 - threadIdx.x];
}

// Shared memory that nobody wrote.
extern "C" __global__ void try_unwritten(const BlockArgs a) {
    __shared__ unsigned fixed[32];
    unsigned* dynamic = (unsigned*)emu_dynamic_shared();
    a.out[2 * threadIdx.x] = fixed[threadIdx.x];
    a.out[2 * threadIdx.x + 1] = dynamic[threadIdx.x];
    __syncthreads();
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 7;
}

// Where each thread is, in three dimensions.
extern "C" __global__ void try_places(const BlockArgs a) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    a.out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 10000 + thread;
}

// The block that comes last takes what all have counted.
extern "C" __global__ void try_tickets(const BlockArgs a) {
    __shared__ unsigned ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(a.out, 1u);
    __syncthreads();
    if (ticket == gridDim.x - 1 && threadIdx.x == 0) a.out[1] = a.out[0];
}

// The first threads wait for the kernel before.
extern "C" __global__ void try_early(const BlockArgs a) {
    if ((int)threadIdx.x < a.n) emu_after_the_kernel_before();
}

// Two groups of asynchronous copies: what there is before anybody waits, when the first has come, and when all have.
extern "C" __global__ void try_copies(const BlockArgs a) {
    uint4* to = (uint4*)emu_dynamic_shared();
    const uint4* from = (const uint4*)a.out;
    emu_copy_async(to, from, 16);
    emu_copy_commit();
    emu_copy_async(to + 1, from + 1, a.n);
    emu_copy_commit();
    unsigned* seen = a.out + 8;
    auto look = [&](int turn) {
        for (int i = 0; i < 8; i++) seen[turn * 8 + i] = ((unsigned*)to)[i];
    };
    look(0);
    emu_copy_wait(1);
    look(1);
    emu_copy_wait(0);
    look(2);
}

__device__ __noinline__ unsigned deep(unsigned n) {
    volatile unsigned room[64];
    room[n % 64] = n;
    return n == 0 ? room[0] : deep(n - 1) + room[n % 64];
}

// One mistake of each kind.
extern "C" __global__ void try_mistake(const BlockArgs a) {
    __shared__ unsigned fixed[32];
    unsigned thread = threadIdx.x;
    switch (a.how) {
        case 0: if (thread < 40) __syncthreads(); break;
        case 1: if (thread < 20) __syncwarp(); break;
        case 2: if (thread % 32 < 16) __syncwarp(); else __ballot_sync(0xffffffffu, 1); break;
        case 3: a.out[thread] = __shfl_sync(0x0000ffffu, thread, 0); break;
        case 4: if (thread == 5) a.out[a.n] = 1; break;
        case 5: if (thread == 5) a.out[-1] = 1; break;
        case 6: if (thread == 5) *(a.out - (1LL << 38)) = 1; break;  // where nothing is mapped, whatever lies near the array
        case 7: fixed[thread + a.n] = 1; a.out[0] = fixed[0]; break;
        case 8: a.out[0] = *(unsigned*)((char*)a.out + a.n / 32); break;
        case 9: a.out[0] = deep(1000000); break;
        case 10: if (thread < 32) __syncthreads(); else __syncwarp(); break;
        case 11: ((unsigned*)emu_dynamic_shared())[thread + a.n] = 1; break;
        case 13: if (thread == 5) a.out[-100] = 1; break;
        case 14: emu_copy_async(emu_dynamic_shared() + 4, a.out, 16); break;
        case 15: emu_copy_async(a.out, a.out, 16); break;
        case 16: emu_copy_async(emu_dynamic_shared(), a.out, 17); break;
        case 12: *(unsigned*)(unsigned long long)(a.n * 0ll) = 1; break;
    }
}

EMU_KERNEL(try_shared, BlockArgs)
EMU_KERNEL(try_race, BlockArgs)
EMU_KERNEL(try_unwritten, BlockArgs)
EMU_KERNEL(try_places, BlockArgs)
EMU_KERNEL(try_tickets, BlockArgs)
EMU_KERNEL(try_early, BlockArgs)
EMU_KERNEL(try_copies, BlockArgs)
EMU_KERNEL(try_mistake, BlockArgs)
