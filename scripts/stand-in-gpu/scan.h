// What libnvrtc reads a kernel source with before it compiles it, to find its kernels: only the
// preprocessor runs, and leaves marks where the real words were. What device.h defines for tests of
// the preprocessor is defined here too.
#pragma once
#define CORDEE_STAND_IN 1
#define __global__ stand_in_kernel_mark
#define __launch_bounds__(...) stand_in_bounds_mark(__VA_ARGS__)
