// Products of more than eight rows with a matrix: tiles of 64 rows by 64 outputs, or 16. bfloat16 goes through the tensor cores, float32 through
// multiply-adds of single precision. A result is one chain of sums over the inputs, whatever other rows there are.

#define TILE 64

// ------------------------------------------------------------------------------------------------------------------- float32

#define STEP_F32 16

// 256 threads, 4 rows by 4 outputs each.
extern "C" __global__ void __launch_bounds__(256) fd_many_f32(const LinearArgs a) {
    after_the_kernel_before();
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
// From one row of a tile to the next: the rows that a warp reads together lie in different banks.
#define X_LINE (STEP + 8) // floats
#define W_LINE (STEP + 8) // halves

// A tile of 64 rows by `OUTPUTS` outputs, by four warps. `STAGES` tiles of inputs lie in shared memory: one is multiplied while the others are on
// their way, since a tile takes far longer to come than to be multiplied. Tiles of 16 outputs are for matrices with too few outputs to
// give every multiprocessor a tile of 64. Both form the same sums.
template <int OUTPUTS, int STAGES> __device__ __forceinline__ void many_bf16(const LinearArgs& a) {
    constexpr int ACROSS = OUTPUTS == 64 ? 2 : 1, DOWN = 4 / ACROSS; // warps
    constexpr int M = TILE / DOWN / 16, N = OUTPUTS / ACROSS / 8;    // products of a warp
    constexpr int X_BYTES = TILE * X_LINE * 4, STAGE_BYTES = X_BYTES + OUTPUTS * W_LINE * 2;
    DYNAMIC_SHARED(shared);
    int row = blockIdx.y * TILE, output = blockIdx.x * OUTPUTS;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int top = warp / ACROSS * M * 16, left = warp % ACROSS * N * 8, group = lane / 4, within = lane % 4 * 2;
    int steps = (a.inputs + STEP - 1) / STEP;
    auto stage_of = [&](int step) { return shared + step % STAGES * STAGE_BYTES; };
    auto fetch_rows = [&](int step) {
        float* to = (float*)stage_of(step);
#pragma unroll
        for (int turn = 0; turn < TILE * STEP / 4 / 128; turn++) {
            int i = threadIdx.x + turn * 128, line = i / (STEP / 4), at = i % (STEP / 4) * 4, k = step * STEP + at, bytes = max(min(a.inputs - k, 4), 0) * 4;
            const float* x = a.x + (long long)min(row + line, a.rows - 1) * a.x_stride;
            copy_async(to + line * X_LINE + at, bytes > 0 ? x + k : x, bytes);
        }
    };
    auto fetch_weights = [&](int step) {
        bf16* to = (bf16*)(stage_of(step) + X_BYTES);
#pragma unroll
        for (int turn = 0; turn < (OUTPUTS * STEP / 8 + 127) / 128; turn++) {
            int i = threadIdx.x + turn * 128, line = i / (STEP / 8), at = i % (STEP / 8) * 8, k = step * STEP + at, bytes = k < a.w_stride ? 16 : 0;
            // The tile of few outputs has not a piece for every thread.
            if (OUTPUTS * STEP / 8 % 128 != 0 && i >= OUTPUTS * STEP / 8) break;
            const bf16* w = (const bf16*)a.w + (long long)min(output + line, a.outputs - 1) * a.w_stride;
            copy_async(to + line * W_LINE + at, bytes > 0 ? w + k : w, bytes);
        }
    };
    float sums[M][N][4] = {};
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) fetch_weights(step);
    }
    after_the_kernel_before();
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) fetch_rows(step);
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        // Now everybody's copies are there, and nobody reads the tile before any more, whose place the next one takes.
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            fetch_weights(step + STAGES - 1);
            fetch_rows(step + STAGES - 1);
        }
        copy_commit();
        const unsigned char* stage = stage_of(step);
#pragma unroll
        for (int j = 0; j < STEP; j += 16) {
            unsigned x[M][4], w[N][2];
#pragma unroll
            for (int m = 0; m < M; m++) {
                const float* at = (const float*)stage + (top + m * 16 + group) * X_LINE + j + within;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float2 both = *(const float2*)(at + i % 2 * 8 * X_LINE + i / 2 * 8);
                    x[m][i] = pair(both.x, both.y);
                }
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                const bf16* at = (const bf16*)(stage + X_BYTES) + (left + n * 8 + group) * W_LINE + j + within;
                w[n][0] = *(const unsigned*)at;
                w[n][1] = *(const unsigned*)(at + 8);
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < N; n++) mma_bf16(sums[m][n], x[m], w[n]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            int r = row + top + m * 16 + group, o = output + left + n * 8 + within;
            finish(a, r, o, sums[m][n][0], sums[m][n][1]);
            finish(a, r + 8, o, sums[m][n][2], sums[m][n][3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) fd_many_bf16(const LinearArgs a) { many_bf16<64, 4>(a); }
extern "C" __global__ void __launch_bounds__(128) fd_narrow_bf16(const LinearArgs a) { many_bf16<16, 6>(a); }

#ifdef EMU
EMU_KERNEL(fd_many_f32, LinearArgs)
EMU_KERNEL(fd_many_bf16, LinearArgs)
EMU_KERNEL(fd_narrow_bf16, LinearArgs)
#endif
