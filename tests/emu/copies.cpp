// Copies from global to shared memory that a thread starts and waits for later. They come as late as they may: when their thread waits for
// them. In reverse they come at once, so that a kernel that overwrites what others still read is found as well.
#include <cstdint>
#include <cstring>
#include <vector>

#include "block.h"

namespace emu {
namespace {

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes;
    unsigned group;  // of its thread
};

struct Copies {
    std::vector<Copy> under_way;
    unsigned committed = 0;
};

Copies of_thread[MOST_THREADS];

Copies& mine() { return of_thread[(current->index.z * block_size.y + current->index.y) * block_size.x + current->index.x]; }

void make(const Copy& copy) {
    std::memcpy(copy.to, copy.from, std::size_t(copy.bytes));
    std::memset(copy.to + copy.bytes, 0, std::size_t(16 - copy.bytes));
}

}  // namespace

void forget_copies() {
    for (Copies& copies : of_thread) {
        copies.under_way.clear();
        copies.committed = 0;
    }
}

}  // namespace emu

void emu_copy_async(void* to, const void* from, int bytes) {
    using namespace emu;
    if (bytes < 0 || bytes > 16) fault(LAUNCH_FAILED, "an asynchronous copy of %d of 16 bytes", bytes);
    for (std::uintptr_t at : {reinterpret_cast<std::uintptr_t>(to), reinterpret_cast<std::uintptr_t>(from)})
        if (at % 16 != 0) fault(MISALIGNED_ADDRESS, "an asynchronous copy of 16 bytes at %#zx", std::size_t(at));
    if (!is_shared(to, 16)) fault(ILLEGAL_ADDRESS, "an asynchronous copy to %p, which is no shared memory of the block", to);
    Copy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, mine().committed};
    if (copies_at_once()) return make(copy);
    mine().under_way.push_back(copy);
}

void emu_copy_commit() { emu::mine().committed++; }

void emu_copy_wait(unsigned left) {
    using namespace emu;
    Copies& copies = mine();
    std::size_t kept = 0;
    for (const Copy& copy : copies.under_way) {
        if (copy.group + left < copies.committed) {
            make(copy);
        } else {
            copies.under_way[kept++] = copy;
        }
    }
    copies.under_way.resize(kept);
}
