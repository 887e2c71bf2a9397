// What a compiled kernel source (libnvrtc's image, a shared library) shows to the stand-in driver: one
// `Entry` for each kernel, under the name `stand_in_entry_` and the kernel's.
#pragma once

namespace stand_in {

struct Launch {
    const char *kernel; // its name
    unsigned grid[3], block[3];
    unsigned long shared_bytes;
    void **parameters; // the address of each
};

struct Entry {
    void (*launch)(const Launch &);
    unsigned parameters;
    const unsigned char *pointers; // for each parameter, whether it is one
    unsigned most_threads;         // of __launch_bounds__; else 1024
};

} // namespace stand_in

// An image begins with these 8 bytes, then the length of what follows, then the version of these headers:
// an image kept in a cache from another version is refused, and so is one for a real GPU.
#define STAND_IN_IMAGE "STANDIN"
struct stand_in_image {
    char magic[8];
    unsigned long bytes;
    unsigned long version;
};
