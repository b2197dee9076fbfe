/* t2fw: decaying fast weights and the delta rule. The C API; this header is its manual.
 *
 *   decay:  S_t = (f_t (x) g_t) o S_{t-1} + v_t (x) k_t,   y_t = S_t q_t          (reads the state after the update)
 *   delta:  y_t = S_{t-1} q_t,   S_t = S_{t-1} + (v_t - S_{t-1} k_t) (x) k_t      (reads the state before the update)
 *
 * Source of the formulas: H. H. Mao, "Fine-Tuning Pre-trained Transformers into Decaying Fast Weights", EMNLP 2022.
 *
 * Names and shapes:  B batch, T sequence length, H heads, D value dimension, K key dimension.
 *   v, f, y  [B,T,H,D]    value; forget gate of the value side (a raw multiplier, not a logarithm); output
 *   q, k, g  [B,T,H,K]    query; key; forget gate of the key side
 *   S        [B,H,D,K]    state
 *   d_x      as x         gradient of the loss with respect to x
 * A gate may be absent (it counts as 1), have one value a token and head ([B,T,H,1]), or be full width. Any value is
 * legal: zero, negative, above one. Nothing divides by a gate. With T2FW_GATE_LOGITS f and g hold logits instead: any
 * value is legal, infinities too. 16 bits hold the logit of a gate near 1 well, and the gate itself not.
 *
 * Use: fill a t2fw_descriptor, create a t2fw_plan from it, execute the plan as often as you like.
 *
 *   t2fw_descriptor d;
 *   t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, B, T, H, D, K);
 *   t2fw_plan *plan;
 *   if (t2fw_plan_create(&d, &plan) != T2FW_SUCCESS) puts(t2fw_last_error());
 *   t2fw_forward_args a = {sizeof a};
 *   a.v = v; a.f = f; a.q = q; a.k = k; a.g = g; a.y = y;
 *   a.scratch = aligned_alloc(T2FW_ALIGNMENT, ...); a.scratch_size = t2fw_plan_scratch_size(plan, T2FW_FORWARD);
 *   t2fw_forward(plan, &a, NULL);
 *
 * Rules that hold for every call:
 * - Execution allocates nothing, waits for nothing, and touches only the memory it is given. On a GPU it is enqueued on
 *   the stream that is passed last; on the CPU it is done when the call returns and the stream must be NULL.
 * - A GPU plan takes memory of its own GPU and managed memory. Host memory is an error, pinned memory too: a GPU that can
 *   reach it would fetch every operand over the bus at each pass. So is another GPU's memory, even of a peer.
 * - A plan is immutable: several threads may execute one plan at once, each with buffers of its own.
 * - The same inputs give the same bits.
 * - The native backend "cuda" computes in fp32, but multiplies 16-bit data on tensor cores where the GPU gives a block
 *   227 KiB of shared memory, in the forward up to K = 128. Operands scaled by the gates of 16 tokens, the states as they
 *   are multiplied and, every 64 tokens, as they are saved for the backward, and in the backward the scores of two tokens
 *   are rounded to the data's dtype there: with fp16 they must stay within 65504. So must, on any GPU, a gradient's running
 *   sum over tiles of 64 values by 64 keys: it is added up in its own dtype, rounded each time.
 * - An error is a status; t2fw_last_error() gives this thread's last message, which names the argument, what came and
 *   what was expected. A call that returns an error has written nothing.
 * - NULL means absent where a comment says "optional", and is an error elsewhere.
 */
#ifndef T2FW_T2FW_H
#define T2FW_T2FW_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define T2FW_API
#else
#define T2FW_API __attribute__((visibility("default")))
#endif

#define T2FW_VERSION_MAJOR 0
#define T2FW_VERSION_MINOR 1
#define T2FW_VERSION_PATCH 0
/* major * 1000000 + minor * 1000 + patch */
#define T2FW_VERSION (T2FW_VERSION_MAJOR * 1000000 + T2FW_VERSION_MINOR * 1000 + T2FW_VERSION_PATCH)

/* Alignment in bytes that scratch and saved must have. */
#define T2FW_ALIGNMENT 64
/* The slot index that makes t2fw_step pass over a batch row: its y is written as zeros, no state is touched. */
#define T2FW_SKIP_SLOT (-1)

#ifdef __cplusplus
extern "C" {
#endif

/* Values are only ever appended. */
typedef enum t2fw_status {
  T2FW_SUCCESS = 0,
  T2FW_INVALID_ARGUMENT = 1, /* an argument is wrong in itself, or two contradict each other */
  T2FW_UNSUPPORTED = 2,      /* legal, but every backend asked declined; the message gives each one's reason */
  T2FW_VERSION_MISMATCH = 3, /* the caller was compiled against another major version, or struct_size is unknown */
  T2FW_OUT_OF_MEMORY = 4,    /* host memory ran out while a plan was made */
  T2FW_DEVICE_ERROR = 5,     /* the device's runtime reported an error */
  T2FW_INTERNAL_ERROR = 6    /* a defect of this library */
} t2fw_status;

typedef enum t2fw_rule { T2FW_DECAY = 1, T2FW_DELTA = 2 } t2fw_rule;
typedef enum t2fw_dtype { T2FW_FP64 = 1, T2FW_FP32 = 2, T2FW_FP16 = 3, T2FW_BF16 = 4 } t2fw_dtype;
typedef enum t2fw_gate { T2FW_GATE_NONE = 0, T2FW_GATE_HEAD = 1, T2FW_GATE_FULL = 2 } t2fw_gate;
typedef enum t2fw_device { T2FW_CPU = 1, T2FW_CUDA = 2, T2FW_HIP = 3 } t2fw_device;
/* Bits of t2fw_descriptor.flags. */
typedef enum t2fw_flag {
  T2FW_BATCH_INVARIANT = 1, /* a sequence's results have the same bits whatever else is in the batch; may be slower */
  T2FW_GATE_LOGITS = 2 /* f and g are logits: the gates are their logistic function, 1 / (1 + exp(-x)), computed in the
                          working precision; d_f and d_g are gradients of the logits. An absent gate still counts as 1.
                          An error with T2FW_DELTA, which has no gates */
} t2fw_flag;
typedef enum t2fw_operation { T2FW_FORWARD = 1, T2FW_BACKWARD = 2, T2FW_STEP = 3 } t2fw_operation;

/* Element strides of an operand over its first three dimensions: b, t, h for tokens ([B,T,H,X]); for a state
 * ([B,H,D,K]) b, h and the row d. The last dimension is contiguous. Inputs may have stride 0 (broadcast) or a negative
 * stride; an output's elements must not overlap one another. Strides of dimensions of size 0 or 1 are ignored. */
typedef struct t2fw_token_strides { int64_t b, t, h; } t2fw_token_strides;
typedef struct t2fw_state_strides { int64_t b, h, d; } t2fw_state_strides;

/* What is to be computed. Fill with t2fw_descriptor_init, then change what differs. */
typedef struct t2fw_descriptor {
  size_t struct_size; /* sizeof(t2fw_descriptor) of the caller */
  int32_t version;    /* T2FW_VERSION of the caller */
  t2fw_rule rule;
  t2fw_dtype data_dtype;  /* of v, q, k, y and their gradients */
  t2fw_dtype gate_dtype;  /* of f, g and their gradients: data_dtype, or T2FW_FP32 beside 16-bit data */
  t2fw_dtype state_dtype; /* of every state and its gradient: data_dtype, or T2FW_FP32 beside 16-bit data */
  t2fw_gate f, g;         /* which gates exist and how wide they are */
  t2fw_device device;     /* whose memory every pointer is */
  int32_t device_index;   /* ordinal of the GPU; 0 for the CPU */
  const char *backend;    /* "reference", "kokkos", "cuda"; NULL takes the first that accepts. Copied by plan_create */
  int64_t B, T, H, D, K;  /* B, T, H >= 0; D, K >= 1 */
  /* Packed sequences: 0 for none. Else B must be 1, T is the number of tokens of all sequences together, every state is
   * [sequences,H,D,K], and execution needs cu_seqlens. */
  int64_t sequences;
  t2fw_token_strides v_strides, f_strides, q_strides, k_strides, g_strides, y_strides;
  t2fw_token_strides d_v_strides, d_f_strides, d_q_strides, d_k_strides, d_g_strides, d_y_strides;
  t2fw_state_strides initial_state_strides, final_state_strides, d_initial_state_strides, d_final_state_strides;
  uint32_t flags; /* t2fw_flag, or'ed; 0 for none */
} t2fw_descriptor;

/* Fills *descriptor: full gates for T2FW_DECAY and none for T2FW_DELTA, gate and state dtype T2FW_FP32 for 16-bit data
 * and data_dtype otherwise, the CPU, the automatic backend, no packing, all operands contiguous in the order
 * [B,T,H,X] and [B,H,D,K], no flags. struct_size: sizeof(t2fw_descriptor).
 * Errors: T2FW_INVALID_ARGUMENT (NULL, an unknown rule or dtype, a size out of range), T2FW_VERSION_MISMATCH. */
T2FW_API t2fw_status t2fw_descriptor_init(t2fw_descriptor *descriptor, size_t struct_size, t2fw_rule rule,
                                          t2fw_dtype data_dtype, int64_t B, int64_t T, int64_t H, int64_t D, int64_t K);

typedef struct t2fw_plan t2fw_plan;

/* Checks the descriptor, asks the backends in order, and makes a plan. *plan is NULL after an error.
 * Errors: T2FW_INVALID_ARGUMENT, T2FW_UNSUPPORTED, T2FW_VERSION_MISMATCH, T2FW_OUT_OF_MEMORY, T2FW_DEVICE_ERROR. */
T2FW_API t2fw_status t2fw_plan_create(const t2fw_descriptor *descriptor, t2fw_plan **plan);
/* NULL is allowed. No execution of the plan may be under way on the host; work already enqueued may be. */
T2FW_API void t2fw_plan_destroy(t2fw_plan *plan);
/* Name of the backend that accepted; NULL for a NULL plan. Owned by the plan. */
T2FW_API const char *t2fw_plan_backend(const t2fw_plan *plan);
/* One line a backend asked: its name, and "accepted" or its reason for declining. NULL for a NULL plan. Owned by the plan. */
T2FW_API const char *t2fw_plan_explain(const t2fw_plan *plan);
/* Bytes of scratch that an operation needs; its content dies with the call. 0 for a NULL plan. */
T2FW_API size_t t2fw_plan_scratch_size(const t2fw_plan *plan, t2fw_operation operation);
/* Bytes that cross from forward to backward. 0 for a NULL plan. */
T2FW_API size_t t2fw_plan_saved_size(const t2fw_plan *plan);

/* Packed sequences: cu_seqlens is int64 [sequences + 1] on the plan's device, from 0 to T, never decreasing; sequence n
 * has the tokens cu_seqlens[n] .. cu_seqlens[n+1]-1. On the CPU a wrong one is an error; on a GPU the host never reads
 * it, and values out of range are clamped to 0 .. T. */
typedef struct t2fw_forward_args {
  size_t struct_size;
  const void *v, *f, *q, *k, *g; /* f, g: NULL exactly if the descriptor says T2FW_GATE_NONE */
  const void *initial_state;     /* optional: zeros */
  const int64_t *cu_seqlens;     /* NULL exactly if descriptor.sequences is 0 */
  void *y;
  void *final_state;             /* optional; may be initial_state itself, with the same strides */
  void *saved;                   /* optional: give it if a backward follows */
  size_t saved_size;
  void *scratch;                 /* may be NULL if its size is 0 */
  size_t scratch_size;
} t2fw_forward_args;

/* y, the final state, and what backward needs. Errors: T2FW_INVALID_ARGUMENT, T2FW_VERSION_MISMATCH, T2FW_DEVICE_ERROR. */
T2FW_API t2fw_status t2fw_forward(const t2fw_plan *plan, const t2fw_forward_args *args, void *stream);

typedef struct t2fw_backward_args {
  size_t struct_size;
  const void *v, *f, *q, *k, *g; /* as they were in forward */
  const void *initial_state;     /* as it was in forward */
  const int64_t *cu_seqlens;
  const void *saved;             /* as forward left it */
  size_t saved_size;
  const void *d_y;
  const void *d_final_state;     /* optional: zeros */
  void *d_v, *d_f, *d_q, *d_k, *d_g; /* d_f, d_g: NULL exactly if the gate is absent */
  void *d_initial_state;         /* optional */
  void *scratch;
  size_t scratch_size;
} t2fw_backward_args;

/* The gradient of every input. Errors: as t2fw_forward. */
T2FW_API t2fw_status t2fw_backward(const t2fw_plan *plan, const t2fw_backward_args *args, void *stream);

typedef struct t2fw_step_args {
  size_t struct_size;
  const void *v, *f, *q, *k, *g;
  const void *initial_state;    /* required: [B,H,D,K], or [slots,H,D,K] with slot_indices */
  void *final_state;            /* required; may be initial_state itself, with the same strides */
  void *y;
  const int64_t *slot_indices;  /* optional: int64 [B] on the plan's device, the slot of each batch row, no slot twice.
                                   T2FW_SKIP_SLOT passes over a row. On the CPU an index out of range is an error; on a
                                   GPU such a row's y is NaN and no state is touched */
  int64_t slots;                /* number of slots in the pool; 0 exactly if slot_indices is NULL */
  void *scratch;
  size_t scratch_size;
} t2fw_step_args;

/* One token (decode): the plan's T must be 1 and its sequences 0. Errors: as t2fw_forward. */
T2FW_API t2fw_status t2fw_step(const t2fw_plan *plan, const t2fw_step_args *args, void *stream);

/* T2FW_VERSION of the library that is linked. */
T2FW_API int32_t t2fw_version(void);
/* A short static text for a status; never NULL. */
T2FW_API const char *t2fw_status_text(t2fw_status status);
/* This thread's last error message, valid until its next t2fw call; "" if there was none. Never NULL. */
T2FW_API const char *t2fw_last_error(void);
/* Comma-separated names of the backends in this build, in the order they are asked, as "name(device)". Static. */
T2FW_API const char *t2fw_backends(void);

#ifdef __cplusplus
}
#endif
#endif
