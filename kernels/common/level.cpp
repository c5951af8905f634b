// SPDX-FileCopyrightText: The Kestrel Authors
// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set. No standard C++ templates in here: the linker keeps one copy of an
// inline function for the whole module, and it might keep the one that only runs on newer machines.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/dispatch.h"
#include "common/memory.h"
#include "common/simd.h"
#include "point_voxel/weighted.h"
#include "sparse_conv/product.h"
#include "sparse_conv/bytes.h"
#if defined(KESTREL_AMX)
#include "sparse_conv/tiles.h"
#endif
#include "sparse_conv/forward.h"
#include "sparse_conv/weight_gradient.h"
#include "bev_pool/lift_splat.h"
#include "bev_pool/lift_splat_backward.h"
#include "winograd/forward.h"
#include "pillars/canvas.h"
#include "axis_sampling/forward.h"
#include "classification/most_likely.h"
#include "window_attention/forward.h"

#define KESTREL_STRING_(x) #x
#define KESTREL_STRING(x) KESTREL_STRING_(x)
#define KESTREL_JOIN_(a, b) a##b
#define KESTREL_JOIN(a, b) KESTREL_JOIN_(a, b)

namespace kestrel {

extern const Level KESTREL_JOIN(level_, KESTREL_LEVEL);
const Level KESTREL_JOIN(level_, KESTREL_LEVEL) = {
    KESTREL_STRING(KESTREL_LEVEL), pack_weight, quantize, sparse_conv, weight_gradient, weighted_gather,
    weighted_scatter, scatter_mean, lift_splat, lift_splat_backward, winograd, pillar_canvas, sample_axes,
    most_likely, window_attention,
};

}  // namespace kestrel
