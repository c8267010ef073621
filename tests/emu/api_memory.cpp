// The driver's interface: memory and copies.
#include <cstring>

#include "state.h"

using namespace emu;

namespace {

Address address(const void* at) { return reinterpret_cast<Address>(at); }

int outside(const char* function, Address at, std::size_t bytes) {
    return refuse(CUDA_ERROR_INVALID_VALUE, std::string(function) + " of " + std::to_string(bytes) + " bytes that are not all in one allocation: " +
                                                describe_address(reinterpret_cast<const void*>(at)));
}

// Host memory is page-locked, or not ours; a part of it that is ours is a mistake.
bool straddles(Address host, std::size_t bytes) {
    return !holds(Kind::Pinned, host, bytes) && (holds(Kind::Pinned, host, 1) || touches_device(host, bytes));
}

Operation transfer(Operation::What what, Address to, Address from, std::size_t bytes) {
    Operation work(what);
    work.to = to;
    work.from = from;
    work.count = bytes;
    return work;
}

// Copies to and from pageable memory are not captured, whatever the mode: they wait for the host.
bool captured(Stream& stream, const char* function) {
    if (!stream.capture) return false;
    stream.invalidated = true;
    complain(std::string(function) + " while its stream is being captured");
    return true;
}

}  // namespace

EMU_API CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    EMU_ENTER("cuMemGetInfo_v2", Needs::Context);
    *total = limit();
    *free = limit() - in_use(current_context()->device);
    return 0;
}

EMU_API CUresult cuMemAlloc_v2(CUdeviceptr* at, std::size_t bytes) {
    EMU_ENTER("cuMemAlloc_v2", Needs::Context);
    if (capture_forbids("cuMemAlloc_v2")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    Address got = allocate(Kind::Device, current_context()->device, bytes);
    if (got == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    *at = got;
    return 0;
}

// Frees after everything that is queued, as the driver does.
EMU_API CUresult cuMemFree_v2(CUdeviceptr at) {
    EMU_ENTER("cuMemFree_v2", Needs::Context);
    if (capture_forbids("cuMemFree_v2")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (at == 0) return 0;
    if (int code = drain_all()) return code;
    if (!holds(Kind::Device, at, 0))
        return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFree_v2 of " + describe_address(reinterpret_cast<const void*>(at)));
    if (std::string damaged = damage(false); !damaged.empty()) return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFree_v2: " + damaged);
    return release(Kind::Device, at) ? 0 : refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFree_v2 of an address inside an allocation");
}

EMU_API CUresult cuMemHostAlloc(void** at, std::size_t bytes, unsigned int flags) {
    EMU_ENTER("cuMemHostAlloc", Needs::Context);
    if (capture_forbids("cuMemHostAlloc")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (bytes == 0 || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    Address got = allocate(Kind::Pinned, 0, bytes);
    if (got == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    *at = reinterpret_cast<void*>(got);
    return 0;
}

EMU_API CUresult cuMemFreeHost(void* at) {
    EMU_ENTER("cuMemFreeHost", Needs::Context);
    if (capture_forbids("cuMemFreeHost")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (int code = drain_all()) return code;
    if (release(Kind::Pinned, address(at))) return 0;
    return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFreeHost of " + describe_address(at));
}

// Page-locked memory is read when the copy runs. Pageable memory is read at once, as the driver does it for copies that it stages.
EMU_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    EMU_ENTER("cuMemcpyHtoDAsync_v2", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    if (!holds(Kind::Device, to, bytes)) return outside("cuMemcpyHtoDAsync_v2", to, bytes);
    if (straddles(address(from), bytes)) return outside("cuMemcpyHtoDAsync_v2", address(from), bytes);
    Operation work = transfer(Operation::ToDevice, to, address(from), bytes);
    if (!holds(Kind::Pinned, work.from, bytes)) {
        if (captured(*queue, "cuMemcpyHtoDAsync_v2 from pageable memory")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        auto* begin = static_cast<const unsigned char*>(from);
        work.bytes.assign(begin, begin + bytes);
    }
    return bytes == 0 ? 0 : submit(*queue, std::move(work));
}

// Page-locked memory is written when the copy runs. A copy to pageable memory has ended when the call returns.
EMU_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    EMU_ENTER("cuMemcpyDtoHAsync_v2", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    if (!holds(Kind::Device, from, bytes)) return outside("cuMemcpyDtoHAsync_v2", from, bytes);
    if (straddles(address(to), bytes)) return outside("cuMemcpyDtoHAsync_v2", address(to), bytes);
    Operation work = transfer(Operation::ToHost, address(to), from, bytes);
    if (bytes == 0) return 0;
    if (holds(Kind::Pinned, work.to, bytes)) return submit(*queue, std::move(work));
    if (captured(*queue, "cuMemcpyDtoHAsync_v2 to pageable memory")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    work.pageable = true;
    if (int code = submit(*queue, std::move(work))) return code;
    return drain(*queue);
}

EMU_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    EMU_ENTER("cuMemcpyDtoDAsync_v2", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    if (!holds(Kind::Device, to, bytes)) return outside("cuMemcpyDtoDAsync_v2", to, bytes);
    if (!holds(Kind::Device, from, bytes)) return outside("cuMemcpyDtoDAsync_v2", from, bytes);
    if (to < from + bytes && from < to + bytes && bytes != 0)
        return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemcpyDtoDAsync_v2 between ranges that overlap, whose result the driver leaves open");
    return bytes == 0 ? 0 : submit(*queue, transfer(Operation::Copy, to, from, bytes));
}

EMU_API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, std::size_t bytes, CUstream stream) {
    EMU_ENTER("cuMemsetD8Async", Needs::Context);
    auto queue = stream_of(stream);
    if (!queue) return CUDA_ERROR_INVALID_HANDLE;
    if (!holds(Kind::Device, to, bytes)) return outside("cuMemsetD8Async", to, bytes);
    Operation work = transfer(Operation::Fill, to, 0, bytes);
    work.value = value;
    return bytes == 0 ? 0 : submit(*queue, std::move(work));
}
