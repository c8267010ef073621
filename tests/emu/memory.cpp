// Allocations as mappings. What a kernel reads or writes behind a guard is a fault of the processor; what it writes into the poison between
// an allocation and its guards is found after the kernel.
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace emu {
namespace {

// CUDA promises this alignment of what it allocates.
constexpr std::size_t ALIGNMENT = 256;
// Freed mappings that are kept without access, so that whoever still uses them is found.
constexpr std::size_t MOST_FREED = 2048;

struct Allocation {
    Kind kind;
    int device;
    std::size_t bytes;
    unsigned char *mapping, *mapping_end;  // without the guards
    bool alive;
};

struct Store {
    std::map<Address, Allocation> all;
    std::deque<Address> freed;
    std::map<int, std::size_t> used;
    std::size_t limit = std::size_t(1) << 30, peak = 0;
    unsigned opened = 0;
};

// Never destroyed: what drops at the end of a process still calls in.
Store& store() {
    static auto& it = *new Store;
    return it;
}

std::size_t page() {
    static const auto bytes = std::size_t(sysconf(_SC_PAGESIZE));
    return bytes;
}

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

// What an allocation takes of a device's memory.
std::size_t charge(std::size_t bytes) { return rounded(std::max<std::size_t>(bytes, 1), 512); }

// The allocation, living or not, whose mapping with its guards holds this address. It begins at most two pages behind the address.
std::map<Address, Allocation>::iterator near(Address at) {
    auto& all = store().all;
    auto it = all.upper_bound(at + 2 * page());
    for (int tries = 0; tries < 4 && it != all.begin(); tries++) {
        --it;
        auto begin = reinterpret_cast<Address>(it->second.mapping) - page(), end = reinterpret_cast<Address>(it->second.mapping_end) + page();
        if (at >= begin && at < end) return it;
    }
    return all.end();
}

bool poisoned(const unsigned char* from, const unsigned char* to) {
    return std::all_of(from, to, [](unsigned char byte) { return byte == POISON; });
}

void protect(const Allocation& a, int how) {
    if (a.kind != Kind::Device || !a.alive) return;
    if (mprotect(a.mapping, std::size_t(a.mapping_end - a.mapping), how) != 0) {
        std::perror("emulated driver: memory cannot be protected");
        std::abort();
    }
}

void forget_oldest() {
    auto& s = store();
    auto it = s.all.find(s.freed.front());
    s.freed.pop_front();
    munmap(it->second.mapping - page(), std::size_t(it->second.mapping_end - it->second.mapping) + 2 * page());
    s.all.erase(it);
}

}  // namespace

Opened::Opened() {
    auto& s = store();
    if (s.opened++ != 0) return;
    for (const auto& [address, a] : s.all) protect(a, PROT_READ | PROT_WRITE);
}

Opened::~Opened() {
    auto& s = store();
    if (--s.opened != 0) return;
    for (const auto& [address, a] : s.all) protect(a, PROT_NONE);
}

Address allocate(Kind kind, int device, std::size_t bytes) {
    auto& s = store();
    if (kind == Kind::Device && (bytes > s.limit || s.used[device] + charge(bytes) > s.limit)) return 0;
    std::size_t body = rounded(std::max<std::size_t>(bytes, 1), ALIGNMENT), mapped = rounded(body, page());
    void* at = mmap(nullptr, mapped + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return 0;
    auto* mapping = static_cast<unsigned char*>(at) + page();
    if (mprotect(mapping, mapped, PROT_READ | PROT_WRITE) != 0) return 0;
    std::memset(mapping, POISON, mapped);
    auto address = reinterpret_cast<Address>(mapping + mapped - body);
    s.all[address] = {kind, device, bytes, mapping, mapping + mapped, true};
    if (s.opened == 0) protect(s.all[address], PROT_NONE);
    if (kind == Kind::Device) {
        s.used[device] += charge(bytes);
        s.peak = std::max(s.peak, s.used[device]);
    }
    return address;
}

bool release(Kind kind, Address at) {
    auto& s = store();
    auto it = s.all.find(at);
    if (it == s.all.end() || it->second.kind != kind || !it->second.alive) return false;
    Allocation& a = it->second;
    std::size_t mapped = std::size_t(a.mapping_end - a.mapping);
    madvise(a.mapping, mapped, MADV_DONTNEED);
    mprotect(a.mapping, mapped, PROT_NONE);
    a.alive = false;
    if (kind == Kind::Device) s.used[a.device] -= charge(a.bytes);
    s.freed.push_back(at);
    if (s.freed.size() > MOST_FREED) forget_oldest();
    return true;
}

void release_all() {
    std::vector<std::pair<Kind, Address>> all;
    for (const auto& [address, a] : store().all)
        if (a.alive) all.emplace_back(a.kind, address);
    for (const auto& [kind, address] : all) release(kind, address);
}

bool holds(Kind kind, Address at, std::size_t bytes) {
    auto& all = store().all;
    auto it = all.upper_bound(at);
    if (it == all.begin()) return false;
    --it;
    const Allocation& a = it->second;
    return a.alive && a.kind == kind && at - it->first <= a.bytes && bytes <= a.bytes - (at - it->first);
}

bool touches_device(Address at, std::size_t bytes) {
    auto first = near(at), last = near(at + (bytes == 0 ? 0 : bytes - 1));
    auto& all = store().all;
    return (first != all.end() && first->second.kind == Kind::Device) || (last != all.end() && last->second.kind == Kind::Device);
}

std::string damage(bool quick) {
    Opened opened;
    for (const auto& [address, a] : store().all) {
        if (!a.alive) continue;
        auto* begin = reinterpret_cast<unsigned char*>(address);
        auto* front = quick ? std::max(a.mapping, begin - std::min<std::ptrdiff_t>(256, begin - a.mapping)) : a.mapping;
        const char* side = !poisoned(front, begin) ? "in front of" : !poisoned(begin + a.bytes, a.mapping_end) ? "behind" : nullptr;
        if (side == nullptr) continue;
        char text[160];
        std::snprintf(text, sizeof text, "something wrote %s the allocation of %zu bytes at %#llx", side, a.bytes,
                      static_cast<unsigned long long>(address));
        return text;
    }
    return "";
}

std::string describe_address(const void* pointer) {
    auto at = reinterpret_cast<Address>(pointer);
    auto it = near(at);
    char text[200];
    if (it == store().all.end()) {
        std::snprintf(text, sizeof text, "address %p, which belongs to no allocation", pointer);
        return text;
    }
    const Allocation& a = it->second;
    if (!a.alive) {
        std::snprintf(text, sizeof text, "address %p, in an allocation of %zu bytes that was freed", pointer, a.bytes);
    } else if (at < it->first) {
        std::snprintf(text, sizeof text, "address %p, %llu bytes in front of an allocation of %zu bytes", pointer,
                      static_cast<unsigned long long>(it->first - at), a.bytes);
    } else {
        std::snprintf(text, sizeof text, "address %p, byte %llu of an allocation of %zu bytes", pointer,
                      static_cast<unsigned long long>(at - it->first), a.bytes);
    }
    return text;
}

void set_limit(std::size_t bytes) { store().limit = bytes; }
std::size_t limit() { return store().limit; }
std::size_t in_use(int device) { return store().used[device]; }
std::size_t peak() { return store().peak; }

void reset_peak() {
    auto& s = store();
    s.peak = 0;
    for (const auto& [device, used] : s.used) s.peak = std::max(s.peak, used);
}

std::size_t living(Kind kind) {
    std::size_t count = 0;
    for (const auto& [address, a] : store().all) count += a.alive && a.kind == kind;
    return count;
}

}  // namespace emu
