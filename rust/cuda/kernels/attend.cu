// Attention: keys and values go into the blocks of the cache, then every row looks at those of its sequence or source.

struct AppendArgs {
    const Look* looks;   // of every row; its position is that of its key
    CacheArgs cache;
    Heads keys, values;  // by row of the step
    Preparation prepare; // of keys
    int rows, heads, d;
};

// A warp per row and head.
template <typename T> __device__ __forceinline__ void append(const AppendArgs& a) {
    DYNAMIC_SHARED(shared); // a head for every warp
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int task = blockIdx.x * (blockDim.x / WARP) + warp, row = task / a.heads, head = task % a.heads;
    if (row >= a.rows) return;
    Look look = a.looks[row];
    if (look.keys == 0) return;
    float* key = (float*)shared + warp * a.d;
    prepare(a.prepare, a.keys.at + (long long)look.row * a.keys.stride + head * a.d, a.d, look.row, lane, key);
    const float* value = a.values.at + (long long)look.row * a.values.stride + head * a.d;
    int block = look.block + look.position / BLOCK, at = look.position % BLOCK * a.d;
    T* keys = keys_of<T>(a.cache, block, head) + at;
    T* values = values_of<T>(a.cache, block, head) + at;
    for (int i = lane; i < a.d; i += WARP) {
        keys[i] = narrow<T>(key[i]);
        values[i] = narrow<T>(value[i]);
    }
}

struct AttendArgs {
    const Look* looks;
    CacheArgs cache;
    Heads queries;       // by row of the step
    Preparation prepare; // of queries
    const float* bias;   // by head, a value per bucket; or null
    const unsigned* buckets; // by distance, the middle one that of no distance
    float* out;
    float* partial;      // of each row, head and chunk: a maximum, a sum, and a value for each of d
    unsigned* tickets;   // of each row and head; zero between kernels
    const int2* tiles;   // first row and number of rows of each tile
    float scale;
    int out_stride, rows, heads, group, d;
    int causal, window, reach, bucket_count;
    int chunks;          // that there is room for
};

struct Seen {
    int from, end;
};

__device__ __forceinline__ Seen seen(const AttendArgs& a, const Look& look) {
    if (!a.causal) return {0, look.keys};
    int end = min(look.position + 1, look.keys);
    return {a.window > 0 ? max(end - a.window, 0) : 0, end};
}

// A query times a key, the first values first; sixteen bytes at a time where a head is made of those.
template <typename T> __device__ __forceinline__ float dot(const float* query, const T* key, int d) {
    constexpr int LENGTH = Vector<T>::LENGTH;
    float sum = 0.0f;
    if (d % LENGTH != 0) {
        for (int i = 0; i < d; i++) sum = fmaf(query[i], widen(key[i]), sum);
        return sum;
    }
    for (int i = 0; i < d; i += LENGTH) {
        float some[LENGTH];
        unpack(*(const uint4*)(key + i), some);
#pragma unroll
        for (int j = 0; j < LENGTH; j++) sum = fmaf(query[i + j], some[j], sum);
    }
    return sum;
}

// What is added to a score.
__device__ __forceinline__ float bias_of(const AttendArgs& a, int head, int distance) {
    if (!a.bias) return 0.0f;
    int place = max(-a.reach, min(a.reach, distance)) + a.reach;
    return a.bias[head * a.bucket_count + a.buckets[place]];
}

// ---------------------------------------------------------------------------------------------- few rows of each sequence

#define CHUNK 256 // positions, counted from a sequence's first: which keys are summed together depends on nothing else
#define MOST_D 256

// A block per row, head and chunk. Whoever ends last merges the row's chunks, first to last.
template <typename T> __device__ __forceinline__ void attend_rows(const AttendArgs& a) {
    __shared__ float query[MOST_D], scores[CHUNK], sums[4][MOST_D], tops[4], totals[4];
    __shared__ int last;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Look look = a.looks[blockIdx.x];
    // A row of no sequence has no place of its own among the results, either.
    if (look.keys == 0) return;
    int head = blockIdx.y, of_keys = head / a.group, d = a.d;
    Seen range = seen(a, look);
    float* out = a.out + (long long)look.out * a.out_stride + head * d;
    int first_chunk = range.from / CHUNK, chunks = (range.end + CHUNK - 1) / CHUNK - first_chunk;
    if ((int)blockIdx.z >= chunks) return;
    int base = (first_chunk + blockIdx.z) * CHUNK;
    int from = max(base, range.from), end = min(base + CHUNK, range.end);
    if (warp == 0) prepare(a.prepare, a.queries.at + (long long)look.row * a.queries.stride + head * d, d, look.row, lane, query);
    __syncthreads();

    float top = -INFINITY;
    for (int key = from + threadIdx.x; key < end; key += blockDim.x) {
        const T* k = keys_of<T>(a.cache, look.block + key / BLOCK, of_keys) + key % BLOCK * d;
        float score = dot(query, k, d) * a.scale + bias_of(a, head, key - look.position);
        scores[key - base] = score;
        // What is no number must not be lost in a maximum.
        top = score > top || score != score ? score : top;
    }
    top = warp_max(top);
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
    float total = 0.0f;
    for (int key = from + threadIdx.x; key < end; key += blockDim.x) {
        float weight = expf(scores[key - base] - top);
        scores[key - base] = weight;
        total += weight;
    }
    total = warp_sum(total);
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    total = ((totals[0] + totals[1]) + totals[2]) + totals[3];
    // Each warp has every fourth key; its lanes have the values of a head.
    float mine[MOST_D / WARP] = {};
    for (int key = from + warp; key < end; key += 4) {
        const T* v = values_of<T>(a.cache, look.block + key / BLOCK, of_keys) + key % BLOCK * d;
        float weight = scores[key - base];
#pragma unroll
        for (int i = 0; i < MOST_D / WARP; i++) {
            int column = lane + i * WARP;
            if (column < d) mine[i] = fmaf(weight, widen(v[column]), mine[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < MOST_D / WARP; i++) {
        int column = lane + i * WARP;
        if (column < d) sums[warp][column] = mine[i];
    }
    __syncthreads();
    int task = blockIdx.x * a.heads + head;
    float* partial = a.partial + (long long)task * a.chunks * (d + 2);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = ((sums[0][i] + sums[1][i]) + sums[2][i]) + sums[3][i];
        if (chunks == 1) {
            out[i] = sum / total;
        } else {
            partial[blockIdx.z * (d + 2) + 2 + i] = sum;
        }
    }
    if (chunks == 1) return;
    if (threadIdx.x == 0) {
        partial[blockIdx.z * (d + 2)] = top;
        partial[blockIdx.z * (d + 2) + 1] = total;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(a.tickets + task, 1u) == (unsigned)chunks - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    const volatile float* all = partial;
    float most = -INFINITY;
    for (int c = 0; c < chunks; c++) {
        float of_chunk = all[c * (d + 2)];
        most = of_chunk > most || of_chunk != of_chunk ? of_chunk : most;
    }
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0.0f, weight = 0.0f;
        for (int c = 0; c < chunks; c++) {
            float by = expf(all[c * (d + 2)] - most);
            sum = fmaf(by, all[c * (d + 2) + 2 + i], sum);
            weight = fmaf(by, all[c * (d + 2) + 1], weight);
        }
        out[i] = sum / weight;
    }
    if (threadIdx.x == 0) a.tickets[task] = 0;
}

// --------------------------------------------------------------------------------------------- many rows of each sequence

#define TILE_ROWS 16

// A block of 128 threads per tile of up to sixteen rows of one sequence and head. It goes over the keys that any of the rows sees, a
// block of the cache at a time; eight threads share a row.
template <typename T> __device__ __forceinline__ void attend_tile(const AttendArgs& a) {
    DYNAMIC_SHARED(shared); // queries, keys (a float more per row, against conflicts of banks), values, weights
    int d = a.d, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float* queries = (float*)shared;
    float* keys = queries + TILE_ROWS * d;
    float* values = keys + BLOCK * (d + 1);
    float* weights = values + BLOCK * d;
    __shared__ int ends[2];
    int2 tile = a.tiles[blockIdx.x];
    int head = blockIdx.y, of_keys = head / a.group;
    for (int r = warp; r < tile.y; r += 4) {
        int row = a.looks[tile.x + r].row;
        prepare(a.prepare, a.queries.at + (long long)row * a.queries.stride + head * d, d, row, lane, queries + r * d);
    }
    int mine = threadIdx.x / 8, within = threadIdx.x % 8;
    bool there = mine < tile.y;
    Look look = a.looks[tile.x + (there ? mine : 0)];
    Seen range = seen(a, look);
    if (threadIdx.x == 0) {
        // Rows of a tile follow each other, so the first sees the first key and the last the last one.
        ends[0] = range.from;
        ends[1] = seen(a, a.looks[tile.x + tile.y - 1]).end;
    }
    __syncthreads();
    int end = ends[1];
    float top = -INFINITY, total = 0.0f;
    float sums[MOST_D / 8] = {};
    for (int start = ends[0] / BLOCK * BLOCK; start < end; start += BLOCK) {
        __syncthreads();
        const T* k = keys_of<T>(a.cache, look.block + start / BLOCK, of_keys);
        const T* v = values_of<T>(a.cache, look.block + start / BLOCK, of_keys);
        for (int i = threadIdx.x; i < BLOCK * d; i += blockDim.x) {
            // What lies past the last key was never written.
            bool is_key = start + i / d < end;
            keys[i / d * (d + 1) + i % d] = is_key ? widen(k[i]) : 0.0f;
            values[i] = is_key ? widen(v[i]) : 0.0f;
        }
        __syncthreads();
        float scores[2], most = top;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int key = within + j * 8;
            float score = 0.0f;
            for (int i = 0; i < d; i++) score = fmaf(queries[mine * d + i], keys[key * (d + 1) + i], score);
            score = score * a.scale + bias_of(a, head, start + key - look.position);
            bool sees = there && start + key >= range.from && start + key < range.end;
            scores[j] = sees ? score : -INFINITY;
            most = scores[j] > most || scores[j] != scores[j] ? scores[j] : most;
        }
#pragma unroll
        for (int step = 4; step > 0; step /= 2) {
            float other = __shfl_xor_sync(0xFFFFFFFFu, most, step);
            most = other > most || other != other ? other : most;
        }
        // A row that has seen nothing yet has no maximum to go by.
        float shift = most == -INFINITY ? 0.0f : most, keep = expf(top - shift), of_block = 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float weight = expf(scores[j] - shift);
            weights[mine * BLOCK + within + j * 8] = weight;
            of_block += weight;
        }
#pragma unroll
        for (int step = 4; step > 0; step /= 2) of_block += __shfl_xor_sync(0xFFFFFFFFu, of_block, step);
        total = total * keep + of_block;
        top = most;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < MOST_D / 8; i++) {
            int column = within + i * 8;
            if (column < d) {
                float sum = sums[i] * keep;
                for (int key = 0; key < BLOCK; key++) sum = fmaf(weights[mine * BLOCK + key], values[key * d + column], sum);
                sums[i] = sum;
            }
        }
    }
    if (!there) return;
    float* out = a.out + (long long)look.out * a.out_stride + head * d;
#pragma unroll
    for (int i = 0; i < MOST_D / 8; i++) {
        int column = within + i * 8;
        if (column < d) out[column] = sums[i] / total;
    }
}

extern "C" __global__ void __launch_bounds__(128) fd_append_f32(const AppendArgs a) { append<float>(a); }
extern "C" __global__ void __launch_bounds__(128) fd_append_bf16(const AppendArgs a) { append<bf16>(a); }
extern "C" __global__ void __launch_bounds__(128, 5) fd_attend_rows_f32(const AttendArgs a) { attend_rows<float>(a); }
extern "C" __global__ void __launch_bounds__(128, 5) fd_attend_rows_bf16(const AttendArgs a) { attend_rows<bf16>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) fd_attend_tile_f32(const AttendArgs a) { attend_tile<float>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) fd_attend_tile_bf16(const AttendArgs a) { attend_tile<bf16>(a); }

// What the host declares (rust/cuda/args.rs).
static_assert(sizeof(Look) == 20 && sizeof(Heads) == 16 && sizeof(Preparation) == 40, "as the host has them");
static_assert(sizeof(CacheArgs) == 32 && sizeof(AppendArgs) == 128 && sizeof(AttendArgs) == 192, "as the host has them");

#ifdef EMU
EMU_KERNEL(fd_append_f32, AppendArgs)
EMU_KERNEL(fd_append_bf16, AppendArgs)
EMU_KERNEL(fd_attend_rows_f32, AttendArgs)
EMU_KERNEL(fd_attend_rows_bf16, AttendArgs)
EMU_KERNEL(fd_attend_tile_f32, AttendArgs)
EMU_KERNEL(fd_attend_tile_bf16, AttendArgs)
#endif
