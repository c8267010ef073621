// Device memory and page-locked host memory: every allocation has pages of its own between two guard pages, poison around it and in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

using Address = std::uint64_t;

// What new and freed memory is filled with: no number in every floating-point type, -1 in integers.
constexpr unsigned char POISON = 0xff;

enum class Kind { Device, Pinned };

// Device memory can be read and written while one of these lives. At other times whoever touches it on the host crashes, as with a GPU.
class Opened {
  public:
    Opened();
    ~Opened();
    Opened(const Opened&) = delete;
};

// Makes an allocation of device `device`; 0 where its memory does not suffice. Device memory begins at a multiple of 256, and
// ends against a guard page, as nearly as that allows.
Address allocate(Kind kind, int device, std::size_t bytes);

// Frees what begins at this address, and keeps its address space from being used again for a while. False if nothing begins there.
bool release(Kind kind, Address at);

// Frees everything.
void release_all();

// Whether these bytes lie in one living allocation of that kind.
bool holds(Kind kind, Address at, std::size_t bytes);

// Whether any of these bytes lie in an allocation or in what was freed lately.
bool touches_device(Address at, std::size_t bytes);

// Checks the poison around all living allocations: a sentence about the first that is damaged, or nothing. Quick checks look at the
// 256 bytes in front only.
std::string damage(bool quick);

// Where an address lies, in words: in front of, behind, or in which allocation.
std::string describe_address(const void* at);

// The limit of each device, and how much of it is in use.
void set_limit(std::size_t bytes);
std::size_t limit();
std::size_t in_use(int device);
std::size_t peak();
void reset_peak();
std::size_t living(Kind kind);

}  // namespace emu
