// kernel for (group 16 by 1, raft 2 by 2), 256 threads, 1 units a block
// %0 = read @norm.weight [group, raft] : f32[group 16, raft 2]
// %1 = write %0 [group, raft] : f32[group 16, raft 2] packed (raft 2, group 16)
extern "C" __global__ void __launch_bounds__(256, 2) axis_k0_copy(
    raft_input a0, raft_output a1, long long batch, long long units, raft_scratch spill)
{
  for (int part = blockIdx.x;; part += gridDim.x) {
    const int u_group = part % 16;
    const int first = part / 16;
    const int each = raft_again((int)units) / 16;
    if (first >= each) break;
    raft_several
    for (int thread = raft_thread<256>(), item = thread; item < 2; item += 256) {
      const int i_raft = item;
      const float v0 = a0[u_group * 2 + i_raft];
      a1[i_raft * 16 + u_group] = v0;
    }
    raft_barrier();
  }
}

// kernel for (b, w 6 by 1), 128 threads, 1 units a block
// %4 = read @x [b, h, w, raft*16 + group] : f32[b, h 8, w 6, raft 2, group 16]
// %5 = read %1 [group, raft] : f32[group 16, raft 2]
// %6 = read %3 [group, raft] : f32[group 16, raft 2]
// %7 = layernorm %4, %5, %6 over (raft, group) eps 1e-05 : f32[b, h 8, w 6, raft 2, group 16]
// %8 = read @fc1.weight [k, raft, h] : f32[k 32, raft 2, h 8]
// %9 = read @fc1.bias [k] : f32[k 32]
// %10 = linear %7, %8, %9 over (raft, h) : f32[b, w 6, group 16, k 32]
// %11 = gelu %10 : f32[b, w 6, group 16, k 32]
// %12 = read @fc2.weight [raft, h, k] : f32[raft 2, h 8, k 32]
// %13 = read @fc2.bias [raft, h] : f32[raft 2, h 8]
// %14 = linear %11, %12, %13 over (k) : f32[b, w 6, group 16, raft 2, h 8]
// %15 = add %4, %14 : f32[b, h 8, w 6, raft 2, group 16]
// %16 = write %15 [b, h, w, raft, group] : f32[b, h 8, w 6, raft 2, group 16]
extern "C" __global__ void __launch_bounds__(128, 4) axis_k2_norm_linear_gelu_linear_add(
    raft_input a0, raft_input a1, raft_input a2, raft_input a3, raft_input a4, raft_input a5, raft_input a6, raft_output a7, long long batch, long long units, raft_scratch spill)
{
  if (gridDim.x > units) {
    // Few images: more and smaller blocks.
    raft_shared(shared, 1056);
    const raft_scratch scratch = shared;
    const raft_scratch slabs = shared + 416;
    for (int part = blockIdx.x;; part += gridDim.x) {
      const int u_group = part % 2;
      const int first = part / 2;
      const int each = raft_again((int)units);
      if (first >= each) break;
      raft_several
      for (int thread = raft_thread<128>(), item = thread / 32; item < 8; item += 4) {
        const int i_h = item;
        const int lane = thread % 32;
        const int number = first;
        const raft_scratch unit = scratch;
        const int u_w = number % 6;
        const int u_b = number / 6;
        float sum = 0.0f, square = 0.0f;
        float kept[1];
        raft_unroll
        for (int i = 0; i < 1; i++) {
          const int e = i * 32 + lane;
          const int e_group = e % 16;
          const int e_raft = e / 16;
          kept[i] = a0[u_b * 1536 + i_h * 192 + u_w * 32 + e_raft * 16 + e_group];
        }
        raft_unroll
        for (int i = 0; i < 1; i++) sum += kept[i];
        const float mean = raft_warp_sum(sum) * 0.03125f;
        raft_unroll
        for (int i = 0; i < 1; i++) square = fmaf(kept[i] - mean, kept[i] - mean, square);
        const float variance = raft_warp_sum(square) * 0.03125f;
        if (lane == 0) {
          unit[i_h] = mean;
          unit[i_h + 16] = 1.0f / sqrtf(variance + 9.99999975e-06f);
        }
      }
      raft_barrier();
      raft_several
      for (int thread = raft_thread<128>(), item = thread; item < 128; item += 128) {
        const int i_group = item % 8;
        const int i_raft = item / 8 % 2;
        const int i_h = item / 16;
        const int number = first;
        const raft_scratch unit = scratch;
        const int u_w = number % 6;
        const int u_b = number / 6;
        const float v0 = fmaf((a0[u_b * 1536 + i_h * 192 + u_w * 32 + i_raft * 16 + i_group + u_group * 8] - unit[i_h]) * unit[i_h + 16], a1[i_raft * 16 + i_group + u_group * 8], a2[i_raft * 16 + i_group + u_group * 8]);
        unit[i_h * 16 + i_raft * 8 + i_group + 32] = v0;
      }
      raft_barrier();
      {
        const int thread = raft_thread<128>();
        const int team = thread / 8;
        const int lane = thread % 8;
        int rows_from[1];
        raft_unroll
        for (int turn = 0; turn < 1; turn++) {
          const int e = thread + turn * 128;
          const int tile = e / 4;
          const int c = e % 2;
          const int l = e / 2 % 2;
          const int i_k = tile;
          const int r0 = l;
          rows_from[turn] = i_k * 32 + r0 * 16 + c * 4;
        }
        const auto bring = [&](int slab) {
          const raft_scratch to = slabs + ((slab % 2) * 320);
          const int k_raft = slab;
          raft_unroll
          for (int turn = 0; turn < 1; turn++) {
            const int e = thread + turn * 128;
            if (e >= 64) continue;
            raft_copy<4>(to, e * 4 + (e / 4) * 4, a3, rows_from[turn] + k_raft * 8, true);
          }
        };
        bring(0); raft_copies_sent();
        float sum[2][1];
        {
          const int thread = raft_thread<128>();
          const int team = thread / 8;
          const int m = team;
          const int i_k = m;
          raft_unroll
          for (int r0 = 0; r0 < 2; r0++) {
            sum[r0][0] = a4[i_k * 2 + r0];
          }
        }
        {
          const raft_scratch unit = scratch;
          for (int slab = 0; slab < 2; slab++) {
            raft_copies_wait<0>();
            raft_barrier();
            if (slab < 1) bring(slab + 1);
            raft_copies_sent();
            const raft_scratch slab_rows = slabs + (team * 20 + (slab % 2) * 320);
            const int k_raft = slab;
            raft_unroll
            for (int q = 0; q < 2; q++) {
              float y[4][1];
              raft_unroll
              for (int j = 0; j < 4; j++) {
                raft_load<1>(&y[j][0], unit, q * 64 + j * 16 + k_raft * 8 + lane + 32);
              }
              raft_unroll
              for (int r0 = 0; r0 < 2; r0++) {
                float x[4];
                raft_load<4>(x, slab_rows, q * 4 + r0 * 8);
                raft_unroll
                for (int j = 0; j < 4; j++) {
                  sum[r0][0] = fmaf(x[j], y[j][0], sum[r0][0]);
                }
              }
            }
          }
        }
        {
          const int thread = raft_thread<128>();
          const int team = thread / 8;
          const int lane = thread % 8;
          const int m = team;
          const int i_k = m;
          const raft_scratch unit = scratch;
          raft_unroll
          for (int r0 = 0; r0 < 2; r0++) {
            float value[1];
            value[0] = raft_gelu(sum[r0][0]);
            unit[i_k * 16 + r0 * 8 + lane + 160] = value[0];
          }
        }
      }
      raft_barrier();
      {
        const int thread = raft_thread<128>();
        const int team = raft_min(thread / 8, 7);
        const int lane = thread % 8;
        int rows_from[1];
        raft_unroll
        for (int turn = 0; turn < 1; turn++) {
          const int e = thread + turn * 128;
          const int tile = e / 16;
          const int c = e % 8;
          const int l = e / 8 % 2;
          const int i_h = tile % 4;
          const int i_raft = tile / 4;
          const int r0 = l;
          rows_from[turn] = i_raft * 256 + i_h * 64 + r0 * 32 + c * 4;
        }
        const auto bring = [&](int slab) {
          const raft_scratch to = slabs;
          raft_unroll
          for (int turn = 0; turn < 1; turn++) {
            const int e = thread + turn * 128;
            raft_copy<4>(to, e * 4 + (e / 16) * 4, a5, rows_from[turn], true);
          }
        };
        bring(0); raft_copies_sent();
        float sum[2][1];
        {
          const int thread = raft_thread<128>();
          const int team = raft_min(thread / 8, 7);
          const int m = team;
          const int i_h = m % 4;
          const int i_raft = m / 4;
          raft_unroll
          for (int r0 = 0; r0 < 2; r0++) {
            sum[r0][0] = a6[i_raft * 8 + i_h * 2 + r0];
          }
        }
        {
          const raft_scratch unit = scratch;
          for (int slab = 0; slab < 1; slab++) {
            raft_copies_wait<0>();
            raft_barrier();
            const raft_scratch slab_rows = slabs + (team * 68);
            if (thread < 64) {
              raft_unroll
              for (int q = 0; q < 8; q++) {
                float y[4][1];
                raft_unroll
                for (int j = 0; j < 4; j++) {
                  raft_load<1>(&y[j][0], unit, q * 32 + j * 8 + lane + 160);
                }
                raft_unroll
                for (int r0 = 0; r0 < 2; r0++) {
                  float x[4];
                  raft_load<4>(x, slab_rows, q * 4 + r0 * 32);
                  raft_unroll
                  for (int j = 0; j < 4; j++) {
                    sum[r0][0] = fmaf(x[j], y[j][0], sum[r0][0]);
                  }
                }
              }
            }
          }
        }
        {
          const int thread = raft_thread<128>();
          const int team = raft_min(thread / 8, 7);
          const int lane = thread % 8;
          const int m = team;
          const int i_h = m % 4;
          const int i_raft = m / 4;
          const int number = first;
          const int u_w = number % 6;
          const int u_b = number / 6;
          if (thread < 64) {
            raft_unroll
            for (int r0 = 0; r0 < 2; r0++) {
              float value[1];
              value[0] = (a0[u_b * 1536 + i_h * 384 + r0 * 192 + u_w * 32 + i_raft * 16 + u_group * 8 + lane] + sum[r0][0]);
              a7[u_b * 1536 + i_h * 384 + r0 * 192 + u_w * 32 + i_raft * 16 + u_group * 8 + lane] = value[0];
            }
          }
        }
      }
      raft_barrier();
    }
    return;
  }
  raft_shared(shared, 1440);
  const raft_scratch scratch = shared;
  const raft_scratch slabs = shared + 800;
  for (int part = blockIdx.x;; part += gridDim.x) {
    const int first = part;
    const int each = raft_again((int)units);
    if (first >= each) break;
    for (int thread = raft_thread<128>(), item = thread / 32; item < 8; item += 4) {
      const int i_h = item;
      const int lane = thread % 32;
      const int number = first;
      const raft_scratch unit = scratch;
      const int u_w = number % 6;
      const int u_b = number / 6;
      float sum = 0.0f, square = 0.0f;
      float kept[1];
      raft_unroll
      for (int i = 0; i < 1; i++) {
        const int e = i * 32 + lane;
        const int e_group = e % 16;
        const int e_raft = e / 16;
        kept[i] = a0[u_b * 1536 + i_h * 192 + u_w * 32 + e_raft * 16 + e_group];
      }
      raft_unroll
      for (int i = 0; i < 1; i++) sum += kept[i];
      const float mean = raft_warp_sum(sum) * 0.03125f;
      raft_unroll
      for (int i = 0; i < 1; i++) square = fmaf(kept[i] - mean, kept[i] - mean, square);
      const float variance = raft_warp_sum(square) * 0.03125f;
      if (lane == 0) {
        unit[i_h] = mean;
        unit[i_h + 16] = 1.0f / sqrtf(variance + 9.99999975e-06f);
      }
    }
    raft_barrier();
    raft_several
    for (int thread = raft_thread<128>(), item = thread; item < 256; item += 128) {
      const int i_group = item % 16;
      const int i_raft = item / 16 % 2;
      const int i_h = item / 32;
      const int number = first;
      const raft_scratch unit = scratch;
      const int u_w = number % 6;
      const int u_b = number / 6;
      const float v0 = fmaf((a0[u_b * 1536 + i_h * 192 + u_w * 32 + i_raft * 16 + i_group] - unit[i_h]) * unit[i_h + 16], a1[i_raft * 16 + i_group], a2[i_raft * 16 + i_group]);
      unit[i_h * 32 + i_raft * 16 + i_group + 32] = v0;
    }
    raft_barrier();
    {
      const int thread = raft_thread<128>();
      const int team = thread / 8;
      const int lane = thread % 8;
      int rows_from[1];
      raft_unroll
      for (int turn = 0; turn < 1; turn++) {
        const int e = thread + turn * 128;
        const int tile = e / 4;
        const int c = e % 2;
        const int l = e / 2 % 2;
        const int i_k = tile;
        const int r0 = l;
        rows_from[turn] = i_k * 32 + r0 * 16 + c * 4;
      }
      const auto bring = [&](int slab) {
        const raft_scratch to = slabs + ((slab % 2) * 320);
        const int k_raft = slab;
        raft_unroll
        for (int turn = 0; turn < 1; turn++) {
          const int e = thread + turn * 128;
          if (e >= 64) continue;
          raft_copy<4>(to, e * 4 + (e / 4) * 4, a3, rows_from[turn] + k_raft * 8, true);
        }
      };
      bring(0); raft_copies_sent();
      float sum[2][2];
      {
        const int thread = raft_thread<128>();
        const int team = thread / 8;
        const int m = team;
        const int i_k = m;
        raft_unroll
        for (int r0 = 0; r0 < 2; r0++) {
          sum[r0][0] = a4[i_k * 2 + r0];
          sum[r0][1] = a4[i_k * 2 + r0];
        }
      }
      {
        const raft_scratch unit = scratch;
        for (int slab = 0; slab < 2; slab++) {
          raft_copies_wait<0>();
          raft_barrier();
          if (slab < 1) bring(slab + 1);
          raft_copies_sent();
          const raft_scratch slab_rows = slabs + (team * 20 + (slab % 2) * 320);
          const int k_raft = slab;
          raft_loop
          for (int q = 0; q < 2; q++) {
            float y[4][2];
            raft_unroll
            for (int j = 0; j < 4; j++) {
              raft_load<2>(&y[j][0], unit, q * 128 + j * 32 + k_raft * 16 + lane * 2 + 32);
            }
            raft_unroll
            for (int r0 = 0; r0 < 2; r0++) {
              float x[4];
              raft_load<4>(x, slab_rows, q * 4 + r0 * 8);
              raft_unroll
              for (int j = 0; j < 4; j++) {
                sum[r0][0] = fmaf(x[j], y[j][0], sum[r0][0]);
                sum[r0][1] = fmaf(x[j], y[j][1], sum[r0][1]);
              }
            }
          }
        }
      }
      {
        const int thread = raft_thread<128>();
        const int team = thread / 8;
        const int lane = thread % 8;
        const int m = team;
        const int i_k = m;
        const raft_scratch unit = scratch;
        raft_unroll
        for (int r0 = 0; r0 < 2; r0++) {
          float value[2];
          value[0] = raft_gelu(sum[r0][0]);
          value[1] = raft_gelu(sum[r0][1]);
          raft_store<2>(unit, i_k * 32 + r0 * 16 + lane * 2 + 288, &value[0]);
        }
      }
    }
    raft_barrier();
    {
      const int thread = raft_thread<128>();
      const int team = thread / 8;
      const int lane = thread % 8;
      int rows_from[1];
      raft_unroll
      for (int turn = 0; turn < 1; turn++) {
        const int e = thread + turn * 128;
        const int tile = e / 8;
        const int c = e % 8;
        const int i_h = tile % 8;
        const int i_raft = tile / 8;
        rows_from[turn] = i_raft * 256 + i_h * 32 + c * 4;
      }
      const auto bring = [&](int slab) {
        const raft_scratch to = slabs;
        raft_unroll
        for (int turn = 0; turn < 1; turn++) {
          const int e = thread + turn * 128;
          raft_copy<4>(to, e * 4 + (e / 8) * 4, a5, rows_from[turn], true);
        }
      };
      bring(0); raft_copies_sent();
      float sum[1][2];
      {
        const int thread = raft_thread<128>();
        const int team = thread / 8;
        const int m = team;
        const int i_h = m % 8;
        const int i_raft = m / 8;
        raft_unroll
        for (int r0 = 0; r0 < 1; r0++) {
          sum[0][0] = a6[i_raft * 8 + i_h];
          sum[0][1] = a6[i_raft * 8 + i_h];
        }
      }
      {
        const raft_scratch unit = scratch;
        for (int slab = 0; slab < 1; slab++) {
          raft_copies_wait<0>();
          raft_barrier();
          const raft_scratch slab_rows = slabs + (team * 36);
          raft_loop
          for (int q = 0; q < 8; q++) {
            float y[4][2];
            raft_unroll
            for (int j = 0; j < 4; j++) {
              raft_load<2>(&y[j][0], unit, q * 64 + j * 16 + lane * 2 + 288);
            }
            raft_unroll
            for (int r0 = 0; r0 < 1; r0++) {
              float x[4];
              raft_load<4>(x, slab_rows, q * 4);
              raft_unroll
              for (int j = 0; j < 4; j++) {
                sum[0][0] = fmaf(x[j], y[j][0], sum[0][0]);
                sum[0][1] = fmaf(x[j], y[j][1], sum[0][1]);
              }
            }
          }
        }
      }
      {
        const int thread = raft_thread<128>();
        const int team = thread / 8;
        const int lane = thread % 8;
        const int m = team;
        const int i_h = m % 8;
        const int i_raft = m / 8;
        const int number = first;
        const int u_w = number % 6;
        const int u_b = number / 6;
        raft_unroll
        for (int r0 = 0; r0 < 1; r0++) {
          float value[2];
          value[0] = (a0[u_b * 1536 + i_h * 192 + u_w * 32 + i_raft * 16 + lane * 2] + sum[0][0]);
          value[1] = (a0[u_b * 1536 + i_h * 192 + u_w * 32 + i_raft * 16 + lane * 2 + 1] + sum[0][1]);
          a7[u_b * 1536 + i_h * 192 + u_w * 32 + i_raft * 16 + lane * 2] = value[0];
          a7[u_b * 1536 + i_h * 192 + u_w * 32 + i_raft * 16 + lane * 2 + 1] = value[1];
        }
      }
    }
    raft_barrier();
  }
}

