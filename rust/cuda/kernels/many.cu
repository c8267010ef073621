// Products of more than eight rows with a matrix: tiles of 64 rows by 64 outputs. bfloat16 goes through the tensor cores, float32 through
// multiply-adds of single precision. A result is one chain of sums over the inputs, whatever other rows there are.

#define TILE 64

// ------------------------------------------------------------------------------------------------------------------- float32

#define STEP_F32 16

// 256 threads, 4 rows by 4 outputs each.
extern "C" __global__ void __launch_bounds__(256) fd_many_f32(const LinearArgs a) {
    __shared__ float x[STEP_F32][TILE + 4], w[STEP_F32][TILE + 4];
    int row = blockIdx.y * TILE, output = blockIdx.x * TILE;
    int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float sums[4][4] = {};
    for (int k = 0; k < a.inputs; k += STEP_F32) {
        __syncthreads();
        for (int i = threadIdx.x; i < TILE * STEP_F32; i += 256) {
            int line = i / STEP_F32, j = i % STEP_F32;
            bool there = k + j < a.inputs;
            x[j][line] = there && row + line < a.rows ? a.x[(long long)(row + line) * a.x_stride + k + j] : 0.0f;
            w[j][line] = there && output + line < a.outputs
                ? ((const float*)a.w)[(long long)(output + line) * a.w_stride + k + j] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < STEP_F32; j++) {
            float rows[4], outputs[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                rows[i] = x[j][ty * 4 + i];
                outputs[i] = w[j][tx * 4 + i];
            }
#pragma unroll
            for (int r = 0; r < 4; r++) {
#pragma unroll
                for (int c = 0; c < 4; c++) sums[r][c] = fmaf(rows[r], outputs[c], sums[r][c]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int c = 0; c < 4; c += 2) finish(a, row + ty * 4 + r, output + tx * 4 + c, sums[r][c], sums[r][c + 1]);
    }
}

// ------------------------------------------------------------------------------------------------------------------ bfloat16

#define STEP 32
#define LINE (STEP + 8) // halves from one row of a tile to the next: eight rows' fragments lie in different banks

// One tile's next inputs on their way: 16 values of a row, and 16 weights of an output.
struct Fetched {
    float4 x[4];
    uint4 w[2];
};

__device__ __forceinline__ void fetch(const LinearArgs& a, int row, int output, int k, Fetched& to) {
    int line = threadIdx.x / 2, from = k + threadIdx.x % 2 * 16;
    const float* x = a.x + (long long)min(row + line, a.rows - 1) * a.x_stride + from;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int left = a.inputs - from - 4 * i;
        to.x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (left >= 4) {
            to.x[i] = *(const float4*)(x + 4 * i);
        } else {
            if (left > 0) to.x[i].x = x[4 * i];
            if (left > 1) to.x[i].y = x[4 * i + 1];
            if (left > 2) to.x[i].z = x[4 * i + 2];
        }
    }
    const bf16* w = (const bf16*)a.w + (long long)min(output + line, a.outputs - 1) * a.w_stride + from;
#pragma unroll
    for (int i = 0; i < 2; i++)
        to.w[i] = from + 8 * i < a.w_stride ? *(const uint4*)(w + 8 * i) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void put(const Fetched& from, bf16* x, bf16* w) {
    int at = threadIdx.x / 2 * LINE + threadIdx.x % 2 * 16;
    uint4* to = (uint4*)(x + at);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float4 low = from.x[2 * i], high = from.x[2 * i + 1];
        to[i] = make_uint4(pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y), pair(high.z, high.w));
        ((uint4*)(w + at))[i] = from.w[i];
    }
}

// 128 threads: four warps, each 32 rows by 32 outputs. While a tile of inputs is multiplied, the next one is on its way.
extern "C" __global__ void __launch_bounds__(128) fd_many_bf16(const LinearArgs a) {
    __shared__ __align__(16) bf16 xs[2][TILE * LINE];
    __shared__ __align__(16) bf16 ws[2][TILE * LINE];
    int row = blockIdx.y * TILE, output = blockIdx.x * TILE;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int top = warp / 2 * 32, left = warp % 2 * 32, group = lane / 4, within = lane % 4 * 2;
    float sums[2][4][4] = {};
    Fetched next;
    fetch(a, row, output, 0, next);
    put(next, xs[0], ws[0]);
    for (int k = 0, turn = 0; k < a.inputs; k += STEP, turn ^= 1) {
        __syncthreads();
        bool more = k + STEP < a.inputs;
        if (more) fetch(a, row, output, k + STEP, next);
#pragma unroll
        for (int j = 0; j < STEP; j += 16) {
            unsigned x[2][4], w[4][2];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const bf16* at = xs[turn] + (top + m * 16 + group) * LINE + j + within;
                x[m][0] = *(const unsigned*)at;
                x[m][1] = *(const unsigned*)(at + 8 * LINE);
                x[m][2] = *(const unsigned*)(at + 8);
                x[m][3] = *(const unsigned*)(at + 8 * LINE + 8);
            }
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const bf16* at = ws[turn] + (left + n * 8 + group) * LINE + j + within;
                w[n][0] = *(const unsigned*)at;
                w[n][1] = *(const unsigned*)(at + 8);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
#pragma unroll
                for (int n = 0; n < 4; n++) mma_bf16(sums[m][n], x[m], w[n]);
            }
        }
        if (more) put(next, xs[turn ^ 1], ws[turn ^ 1]);
    }
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int r = row + top + m * 16 + group, o = output + left + n * 8 + within;
            finish(a, r, o, sums[m][n][0], sums[m][n][1]);
            finish(a, r + 8, o, sums[m][n][2], sums[m][n][3]);
        }
    }
}

#ifdef EMU
EMU_KERNEL(fd_many_f32, LinearArgs)
EMU_KERNEL(fd_many_bf16, LinearArgs)
#endif
