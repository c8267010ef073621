// Products of one to eight rows with a matrix: bound by reading the matrix, so every weight is read once and meets all rows.
//
// A warp has two neighbouring outputs, or shares them with the other warps of its block where a matrix has few outputs (`split`). The
// inputs pass through shared memory in chunks, normalized and rounded on their way. Which lane adds which inputs depends on the
// matrix alone, and never on the number of rows: a row has the same bits alone and beside others.

#define WARPS 4
#define VECTORS 4 // sixteen bytes of each output that a lane has under way

// Where a lane's u-th vector of a chunk begins.
template <typename T> __device__ __forceinline__ int place(int u, int split, int part, int lane) {
    return ((u * split + part) * WARP + lane) * Vector<T>::LENGTH;
}

template <typename T, int ROWS> __device__ __forceinline__ void few(const LinearArgs& a) {
    constexpr int LENGTH = Vector<T>::LENGTH;
    DYNAMIC_SHARED(shared); // ROWS × a chunk of inputs
    __shared__ float2 by[ROWS];
    __shared__ float parts[WARPS][ROWS][2];
    T* inputs = (T*)shared;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int part = warp % a.split, chunk = WARP * LENGTH * VECTORS * a.split;
    int n = (blockIdx.x * (WARPS / a.split) + warp / a.split) * 2;
    const T* w[2];
#pragma unroll
    for (int o = 0; o < 2; o++) w[o] = (const T*)a.w + (long long)min(n + o, a.outputs - 1) * a.w_stride;

    // The first weights are on their way while the input is prepared.
    uint4 next[2][VECTORS];
#pragma unroll
    for (int o = 0; o < 2; o++) {
#pragma unroll
        for (int u = 0; u < VECTORS; u++) {
            int k = place<T>(u, a.split, part, lane);
            next[o][u] = k < a.w_stride ? load_once(w[o] + k) : make_uint4(0, 0, 0, 0);
        }
    }
    if (a.norm.kind != NO_NORM) {
        for (int r = warp; r < ROWS; r += WARPS) {
            float2 found = statistics(a.x + (long long)min(r, a.rows - 1) * a.x_stride, a.inputs, a.norm, lane);
            if (lane == 0) by[r] = found;
        }
        __syncthreads();
    }
    float sums[ROWS][2] = {};
    for (int start = 0; start < a.inputs; start += chunk) {
        if (start > 0) __syncthreads();
        for (int r = 0; r < ROWS; r++) {
            const float* x = a.x + (long long)min(r, a.rows - 1) * a.x_stride;
            for (int i = threadIdx.x; i < chunk; i += WARPS * WARP) {
                float value = 0.0f;
                if (start + i < a.inputs) {
                    value = x[start + i];
                    if (a.norm.kind != NO_NORM) value = normalize(value, by[r], a.norm, start + i);
                }
                inputs[r * chunk + i] = narrow<T>(value);
            }
        }
        __syncthreads();
#pragma unroll
        for (int u = 0; u < VECTORS; u++) {
            int k = place<T>(u, a.split, part, lane), later = start + chunk + k;
            float weights[2][LENGTH];
#pragma unroll
            for (int o = 0; o < 2; o++) {
                unpack(next[o][u], weights[o]);
                next[o][u] = later < a.w_stride ? load_once(w[o] + later) : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float x[LENGTH];
                unpack(*(const uint4*)(inputs + r * chunk + k), x);
#pragma unroll
                for (int i = 0; i < LENGTH; i++) {
                    sums[r][0] = fmaf(weights[0][i], x[i], sums[r][0]);
                    sums[r][1] = fmaf(weights[1][i], x[i], sums[r][1]);
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float first = warp_sum(sums[r][0]), second = warp_sum(sums[r][1]);
        if (lane == 0) {
            parts[warp][r][0] = first;
            parts[warp][r][1] = second;
        }
    }
    __syncthreads();
    // The block's pairs of outputs, each summed over the warps that share it, first to last.
    int pairs = WARPS / a.split;
    for (int i = threadIdx.x; i < pairs * ROWS; i += WARPS * WARP) {
        int pair = i / ROWS, r = i % ROWS;
        float first = parts[pair * a.split][r][0], second = parts[pair * a.split][r][1];
        for (int p = 1; p < a.split; p++) {
            first += parts[pair * a.split + p][r][0];
            second += parts[pair * a.split + p][r][1];
        }
        finish(a, r, (blockIdx.x * pairs + pair) * 2, first, second);
    }
}

#define FEW(NAME, T, ROWS) \
    extern "C" __global__ void __launch_bounds__(128, ROWS == 8 ? 3 : 4) NAME(const LinearArgs a) { few<T, ROWS>(a); }
FEW(fd_few_f32_1, float, 1)
FEW(fd_few_f32_2, float, 2)
FEW(fd_few_f32_4, float, 4)
FEW(fd_few_f32_8, float, 8)
FEW(fd_few_bf16_1, bf16, 1)
FEW(fd_few_bf16_2, bf16, 2)
FEW(fd_few_bf16_4, bf16, 4)
FEW(fd_few_bf16_8, bf16, 8)

// What the host declares (rust/cuda/args.rs).
static_assert(sizeof(NormArgs) == 24 && sizeof(Results) == 24 && sizeof(LinearArgs) == 192, "as the host has them");

#ifdef EMU
EMU_KERNEL(fd_few_f32_1, LinearArgs)
EMU_KERNEL(fd_few_f32_2, LinearArgs)
EMU_KERNEL(fd_few_f32_4, LinearArgs)
EMU_KERNEL(fd_few_f32_8, LinearArgs)
EMU_KERNEL(fd_few_bf16_1, LinearArgs)
EMU_KERNEL(fd_few_bf16_2, LinearArgs)
EMU_KERNEL(fd_few_bf16_4, LinearArgs)
EMU_KERNEL(fd_few_bf16_8, LinearArgs)
#endif
