/* What another engine does with the installed library, in plain C: one head of size one, whose outputs are known. */
#include <stdio.h>
#include <stdlib.h>
#include <t2fw/t2fw.h>

int main(void) {
  t2fw_descriptor d;
  t2fw_plan *plan;
  t2fw_forward_args a = {0};
  /* S = 1*2 = 2, y = 2*3; S = (0.5*0.25)*2 + 4*5 = 20.25, y = 20.25*2 */
  const float v[] = {1, 4}, k[] = {2, 5}, q[] = {3, 2}, f[] = {1, 0.5f}, g[] = {1, 0.25f};
  const float expected[] = {6, 40.5f};
  float y[] = {-1, -1}, final_state = -1;
  size_t size;

  a.struct_size = sizeof a;

  if (t2fw_version() != T2FW_VERSION) return printf("header and library differ\n"), 1;
  if (t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 2, 1, 1, 1) || t2fw_plan_create(&d, &plan))
    return printf("%s\n", t2fw_last_error()), 1;

  size = t2fw_plan_scratch_size(plan, T2FW_FORWARD);
  if (size && !(a.scratch = malloc(size + T2FW_ALIGNMENT))) return 1;
  void *const allocated = a.scratch;
  if (size) a.scratch = (void *)(((uintptr_t)allocated + T2FW_ALIGNMENT - 1) / T2FW_ALIGNMENT * T2FW_ALIGNMENT);
  a.scratch_size = size;
  a.v = v, a.f = f, a.q = q, a.k = k, a.g = g, a.y = y, a.final_state = &final_state;
  if (t2fw_forward(plan, &a, NULL)) return printf("%s\n", t2fw_last_error()), 1;
  printf("%s", t2fw_plan_explain(plan));
  t2fw_plan_destroy(plan);
  free(allocated);

  if (y[0] != expected[0] || y[1] != expected[1] || final_state != 20.25f)
    return printf("y = %g %g, final state = %g\n", y[0], y[1], final_state), 1;
  return 0;
}
