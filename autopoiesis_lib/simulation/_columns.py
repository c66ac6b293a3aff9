"""Column indices of the integer arrays of the compiled kernel.

The kernel keeps all state in int64 arrays (one row per request, one row per replica). One explicit signature then
serves every run: numba compiles once and caches. The names here are column indices, and the comments give the units.
"""

from typing import Final

FS_PER_NS: Final = 1_000_000
NEVER: Final = 1 << 62
DAY_US: Final = 86_400_000_000

# --- one row per request ------
ARRIVAL_US: Final = 0
PROMPT: Final = 1  # tokens
OUTPUT: Final = 2  # tokens; the true length, which only the kernel reads and no policy sees
MAX_TOKENS: Final = 3
PRIORITY: Final = 4
CACHED_HINT: Final = 5  # tokens found in the prefix cache when the request was enqueued
GENERATED: Final = 6  # output tokens so far; exact while waiting or prefilling
PREEMPTIONS: Final = 7
COMPUTED: Final = 8  # tokens whose KV exists; exact while waiting or prefilling
TARGET: Final = 9  # tokens to prefill before the next output token
HELD: Final = 10  # private blocks held since admission, reservation included
OWNED: Final = 11  # hash blocks of the prefix cache this request pins
PREFIX_DONE: Final = 12  # leading hash blocks already hit or inserted
DUPLICATED: Final = 13  # 1 if another request had already cached a hash block that this one computed
SCORE: Final = 14
SCHEDULED_NS: Final = 15
FIRST_TOKEN_NS: Final = 16
FINISH_NS: Final = 17
RECOMPUTED: Final = 18  # tokens
CACHED: Final = 19  # prompt tokens served from the prefix cache at first admission
REPLICA: Final = 20
STATE: Final = 21
NEXT_WAITING: Final = 22
PREV_WAITING: Final = 23
REQUEST_COLUMNS: Final = 24

# values of STATE
QUEUED: Final = 0
RUNNING: Final = 1
FINISHED: Final = 2
REJECTED: Final = 3

# --- one row per replica ------
NOW_NS: Final = 0
NOW_FS: Final = 1  # femtoseconds beyond NOW_NS, below FS_PER_NS
BUSY: Final = 2  # 1 while a step is in flight
END_NS: Final = 3
END_FS: Final = 4
DECODED: Final = 5  # decode steps taken so far; a decode's context is BASE + DECODED
NUM_RUNNING: Final = 6
NUM_DECODING: Final = 7
CONTEXT: Final = 8  # sum of the contexts of all decodes, tokens
NEXT_EVENT: Final = 9  # value of DECODED at which a request finishes or exceeds a reservation
NUM_PREFILLING: Final = 10
FREE: Final = 11  # blocks that no running request holds, including evictable cached ones
UNUSED: Final = 12  # those of the free blocks that have no cached content
NUM_WAITING: Final = 13
MIN_NEED: Final = 14  # lower bound of the blocks any waiting request needs
HEAD_BLOCKED: Final = 15  # 1: the first-come head did not fit, and no block has been freed since
HEALTH: Final = 16
STEPS: Final = 17
NUM_PREEMPTED: Final = 18
RESERVED: Final = 19  # blocks held beyond use
QUEUED_TOKENS: Final = 20  # prompt tokens of waiting requests
STARTED_NS: Final = 21  # time at which the replica was last switched on
ON_NS: Final = 22  # total time on, without the current period
READY_NS: Final = 23  # time at which a starting replica becomes active
ACTIVE_STEP_DECODES: Final = 24  # decodes taking part in the step in flight
SERVED: Final = 25  # requests finished here
REPLICA_COLUMNS: Final = 26

# values of HEALTH
OFF: Final = 0
STARTING: Final = 1
ACTIVE: Final = 2
DRAINING: Final = 3
LOST: Final = 4

# --- one column per running request ------
RUN_REQUEST: Final = 0
RUN_BASE: Final = 1  # context minus DECODED; PREFILLING while the request has no output token to extend
RUN_FINISH: Final = 2  # value of DECODED at which the request finishes
RUN_SPARE_END: Final = 3  # value of DECODED at which its reservation is used up
RUN_EVENT: Final = 4  # the earlier of the two
RUN_COLUMNS: Final = 5
PREFILLING: Final = -(1 << 62)

# --- run parameters ------
C0: Final = 0  # all coefficients in femtoseconds, see StepTimeModel
C1: Final = 1
C2: Final = 2
C3: Final = 3
C4_HALF: Final = 4
PREFILL_FLOOR: Final = 5
BLOCK_SIZE: Final = 6
TOTAL_BLOCKS: Final = 7
MAX_NUM_SEQS: Final = 8
MAX_BATCHED_TOKENS: Final = 9
CHUNK_LIMIT: Final = 10
WATERMARK: Final = 11
CACHING: Final = 12
NUM_HASHES: Final = 13  # distinct hash blocks in the trace; 0 without prefixes
HASH_WEIGHT: Final = 14  # engine blocks in one hash block
CHECKED: Final = 15
SCALE_INTERVAL_US: Final = 16
SCALE_MIN: Final = 17
SCALE_MAX: Final = 18
SCALE_STEP: Final = 19
START_DELAY_US: Final = 20
PARAMETERS: Final = 21

# --- slots of the address table ------
ORDERING: Final = 0
ADMIT: Final = 1
RESERVE: Final = 2
VICTIM: Final = 3
BUDGET: Final = 4
CHUNK: Final = 5
KEEP: Final = 6
ROUTE: Final = 7
SCALE: Final = 8
NUM_SLOTS: Final = 9

# --- one row of the step log: one step, or one closed-form window of pure decode steps ------
LOG_END_NS: Final = 0
LOG_REPLICA: Final = 1
LOG_STEPS: Final = 2
LOG_PREFILL_STEPS: Final = 3
LOG_PREFILL_TOKENS: Final = 4
LOG_DECODES: Final = 5  # decode sequences, summed over the steps
LOG_CONTEXT: Final = 6  # context tokens of decodes, summed over the steps
LOG_ATTENTION2: Final = 7  # twice the sum of chunk * (context + chunk / 2)
LOG_RUNNING: Final = 8
LOG_WAITING: Final = 9
LOG_FREE: Final = 10
LOG_START_NS: Final = 11
LOG_COLUMNS: Final = 12

# --- the decision log -----
ADMITTED: Final = 0
PREEMPTED: Final = 1

# --- status of a run ------
OK: Final = 0
STUCK: Final = 1
NOT_CONSERVED: Final = 2
