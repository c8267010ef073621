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

// Four values, rounded, into shared memory.
__device__ __forceinline__ void put(float* to, float4 v) { *(float4*)to = v; }
__device__ __forceinline__ void put(bf16* to, float4 v) { *(uint2*)to = make_uint2(pair(v.x, v.y), pair(v.z, v.w)); }

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

    // The first weights are on their way before the input is there.
    uint4 next[2][VECTORS];
#pragma unroll
    for (int o = 0; o < 2; o++) {
#pragma unroll
        for (int u = 0; u < VECTORS; u++) {
            int k = place<T>(u, a.split, part, lane);
            next[o][u] = k < a.w_stride ? load_once(w[o] + k) : make_uint4(0, 0, 0, 0);
        }
    }
    // So are the norm's weights for the inputs that this thread prepares first: fours of neighbouring inputs.
    constexpr int FOURS = VECTORS * LENGTH / 16;
    int at = threadIdx.x * 4;
    float4 gains[FOURS] = {}, shifts[FOURS] = {};
    auto fetch_norm = [&](int from) {
#pragma unroll
        for (int j = 0; j < FOURS; j++) {
            int i = from + at + j * 4 * WARPS * WARP;
            gains[j] = four(a.norm.weight, i, a.inputs);
            if (a.norm.kind == LAYER_NORM) shifts[j] = four(a.norm.bias, i, a.inputs);
        }
    };
    if (a.norm.kind != NO_NORM) fetch_norm(0);
    // And what is added to the pair of outputs that this thread finishes: a thread for every pair and row.
    int pairs = WARPS / a.split, my_pair = threadIdx.x / ROWS, my_row = threadIdx.x % ROWS;
    int my_output = (blockIdx.x * pairs + my_pair) * 2;
    Added added;
    fetch_bias(a, my_output, added);
    after_the_kernel_before();
    fetch_residual(a, my_row, my_output, added);
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
        for (int from = start; from < start + chunk; from += FOURS * 4 * WARPS * WARP) {
#pragma unroll 2
            for (int r = 0; r < ROWS; r++) {
                const float* x = a.x + (long long)min(r, a.rows - 1) * a.x_stride;
                float4 values[FOURS];
#pragma unroll
                for (int j = 0; j < FOURS; j++) values[j] = four(x, from + at + j * 4 * WARPS * WARP, a.inputs);
#pragma unroll
                for (int j = 0; j < FOURS; j++) {
                    int i = from + at + j * 4 * WARPS * WARP;
                    float4 v = values[j];
                    if (a.norm.kind != NO_NORM) {
                        float2 of_row = by[r];
                        v.x = i < a.inputs ? normalize(v.x, of_row, gains[j].x, shifts[j].x) : 0.0f;
                        v.y = i + 1 < a.inputs ? normalize(v.y, of_row, gains[j].y, shifts[j].y) : 0.0f;
                        v.z = i + 2 < a.inputs ? normalize(v.z, of_row, gains[j].z, shifts[j].z) : 0.0f;
                        v.w = i + 3 < a.inputs ? normalize(v.w, of_row, gains[j].w, shifts[j].w) : 0.0f;
                    }
                    put(inputs + r * chunk + i - start, v);
                }
            }
            if (a.norm.kind != NO_NORM) fetch_norm(from + FOURS * 4 * WARPS * WARP);
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
    if (my_pair >= pairs) return;
    float first = parts[my_pair * a.split][my_row][0], second = parts[my_pair * a.split][my_row][1];
    for (int p = 1; p < a.split; p++) {
        first += parts[my_pair * a.split + p][my_row][0];
        second += parts[my_pair * a.split + p][my_row][1];
    }
    finish(a, my_row, my_output, first, second, added);
}

#define FEW(NAME, T, ROWS) \
    extern "C" __global__ void __launch_bounds__(128, ROWS > 2 ? 3 : 4) NAME(const LinearArgs a) { few<T, ROWS>(a); }
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
