// The choice of the first of the largest logits, and what a next step on the device needs of it.

#define PARTS 32 // blocks that share a row

struct BestArgs {
    const float* logits;
    float* values;   // the largest of each part, by row
    unsigned* ids;   // and where it is; NO_TOKEN where a part holds what is no number, or nothing above minus infinity
    int stride, vocabulary;
};

// The better of two: the larger, of equal ones the first. What is no number is better than anything, so that it is seen.
__device__ __forceinline__ bool is_better(float x, unsigned id, float than, unsigned of) {
    if (than != than) return false;
    return x != x || x > than || (x == than && id < of);
}

__device__ __forceinline__ void best_of_warp(float& value, unsigned& id) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xFFFFFFFFu, value, step);
        unsigned at = __shfl_xor_sync(0xFFFFFFFFu, id, step);
        if (is_better(other, at, value, id)) {
            value = other;
            id = at;
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) fd_best(const BestArgs a) {
    after_the_kernel_before();
    __shared__ float values[4];
    __shared__ unsigned ids[4];
    const float* logits = a.logits + (long long)blockIdx.x * a.stride;
    int size = (a.vocabulary + PARTS - 1) / PARTS, first = blockIdx.y * size, end = min(first + size, a.vocabulary);
    float value = -INFINITY;
    unsigned id = NO_TOKEN;
    for (int i = first + threadIdx.x; i < end; i += blockDim.x) {
        float x = logits[i];
        if (is_better(x, (unsigned)i, value, id) && x != -INFINITY) {
            value = x;
            id = (unsigned)i;
        }
    }
    best_of_warp(value, id);
    if (threadIdx.x % WARP == 0) {
        values[threadIdx.x / WARP] = value;
        ids[threadIdx.x / WARP] = id;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < 4; w++) {
        if (is_better(values[w], ids[w], value, id)) {
            value = values[w];
            id = ids[w];
        }
    }
    a.values[blockIdx.x * PARTS + blockIdx.y] = value;
    a.ids[blockIdx.x * PARTS + blockIdx.y] = id;
}

struct AdvanceArgs {
    const float* values;
    const unsigned* best;
    unsigned* chosen;    // the steps' ids, `rows` each
    unsigned* step;      // steps made so far
    unsigned* ids;       // of the rows; those of the next step afterwards
    int* positions;
    Look* looks;         // over the rows' own sequences
    int rows;
};

// One block, in which a warp goes from row to row: the best of a row's parts, which the next step appends.
extern "C" __global__ void __launch_bounds__(1024) fd_advance(const AdvanceArgs a) {
    after_the_kernel_before();
    int lane = threadIdx.x % WARP;
    unsigned step = *a.step;
    for (int row = threadIdx.x / WARP; row < a.rows; row += blockDim.x / WARP) {
        float value = a.values[row * PARTS + lane];
        unsigned id = a.best[row * PARTS + lane];
        best_of_warp(value, id);
        if (lane != 0) continue;
        // A row that has chosen nothing chooses nothing any more.
        if (value != value || a.ids[row] == NO_TOKEN) id = NO_TOKEN;
        a.chosen[step * a.rows + row] = id;
        a.ids[row] = id;
        // Rows of no sequence stay where they are.
        if (a.looks[row].keys == 0) continue;
        a.positions[row] += 1;
        a.looks[row].position += 1;
        a.looks[row].keys += 1;
    }
    // Everybody has read the number of steps.
    __syncthreads();
    if (threadIdx.x == 0) *a.step = step + 1;
}

// What the host declares (rust/cuda/args.rs).
static_assert(sizeof(BestArgs) == 32 && sizeof(AdvanceArgs) == 64, "as the host has them");

#ifdef EMU
EMU_KERNEL(fd_best, BestArgs)
EMU_KERNEL(fd_advance, AdvanceArgs)
#endif
