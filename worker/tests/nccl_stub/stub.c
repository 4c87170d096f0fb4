// Stands in for NCCL and the CUDA runtime in tests: the same functions on the host's memory, for ranks that are threads of
// one process. Like NCCL it does not block: calls are in progress until the communicator has been asked for its state, and a
// collective runs later, on its stream's thread, and takes a moment. Whoever uses a result too early finds the old values.
//
// How it is compiled says how it fails:
//   VERSION=22809          what it calls itself
//   STUCK_FROM=n           the n-th operation of each rank never ends, nor those after it
//   BROKEN_FROM=n          the same, and the communicator has an error from then on
//   INIT_NEVER_ENDS        communicators are never ready
//   ABORT_NEVER_RETURNS    as it may be where other ranks do not abort, too
//   WITHOUT_REDUCE_SCATTER the function is missing
//   LOG="file"             a line for everything that was made or ended, and for every misuse

#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 22809
#endif
#ifndef STUCK_FROM
#define STUCK_FROM 0
#endif
#ifndef BROKEN_FROM
#define BROKEN_FROM 0
#endif

enum { SUCCESS = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { FLOAT32 = 7, BFLOAT16 = 9 };
enum { NOT_READY = 600, INVALID_DEVICE = 101, DEVICES = 8, MOST_RANKS = 16 };

typedef struct { char bytes[128]; } UniqueId;

typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
} Config;

typedef enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, EXCHANGE, RECORD, WAIT } Kind;

// What one rank sends to another: there once until it is taken.
typedef struct Message {
    int from, to, taken;
    const void *at;
    size_t bytes;
    struct Message *next;
} Message;

typedef struct Part {
    int peer, is_send;
    void *at;
    size_t bytes;
    Message *sent;
    struct Part *next;
} Part;

typedef struct World {
    UniqueId id;
    int ranks, joined, here;
    unsigned long meetings;
    struct Work *work[MOST_RANKS];
    Message *messages;
    struct World *next;
} World;

typedef struct {
    World *world;
    int rank, over, error, looks, operations;
    struct Work *prepared;
    struct Stream *stream;
} Comm;

typedef struct {
    unsigned long recorded, completed;
    int is_of_default_stream;
} Event;

typedef struct Work {
    Kind kind;
    Comm *comm;
    const void *send;
    void *receive;
    size_t count;
    int type, root;
    Part *parts;
    Event *event;
    unsigned long ticket;
    struct Work *next;
} Work;

typedef struct Stream {
    pthread_t thread;
    Work *first, *last;
    int closing, waits_for_default_stream;
} Stream;

// One lock for everything, and one bell.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static World *worlds;
static int something_is_stuck;

static __thread int device, last_error, depth;
static __thread Part *group;
static __thread Comm *group_comm;
static __thread Stream *group_stream;

static void note(const char *what) {
#ifdef LOG
    FILE *file = fopen(LOG, "a");
    if (file) {
        fprintf(file, "%s\n", what);
        fclose(file);
    }
#else
    (void)what;
#endif
}

// --- sums ---

static float value(const void *at, int type, size_t i) {
    if (type == FLOAT32) return ((const float *)at)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void put(void *at, int type, size_t i, float f) {
    if (type == FLOAT32) {
        ((float *)at)[i] = f;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    // To the nearest, and of two that are equally near to the even one.
    bits += 0x7fff + (bits >> 16 & 1);
    ((uint16_t *)at)[i] = (uint16_t)(bits >> 16);
}

static size_t size_of(int type) { return type == FLOAT32 ? 4 : 2; }

// --- what streams do, with the lock held ---

// Waits for all ranks. 0: the communicator was ended meanwhile.
static int meet(Comm *comm) {
    World *world = comm->world;
    unsigned long meeting = world->meetings;
    if (comm->over) return 0;
    if (++world->here == world->ranks) {
        world->here = 0;
        world->meetings++;
        pthread_cond_broadcast(&changed);
        return 1;
    }
    while (world->meetings == meeting && !comm->over) pthread_cond_wait(&changed, &lock);
    return world->meetings != meeting;
}

static size_t result_count(const Work *work) {
    return work->kind == ALL_GATHER ? work->count * work->comm->world->ranks : work->count;
}

static void compute(const Work *work, void *result) {
    World *world = work->comm->world;
    size_t size = size_of(work->type), skip = work->kind == REDUCE_SCATTER ? work->comm->rank * work->count : 0;
    for (int r = 0; r < world->ranks; r++) {
        if (world->work[r]->kind != work->kind || world->work[r]->count != work->count) {
            note("misuse: ranks differ in what they do");
            return;
        }
    }
    if (work->kind == ALL_GATHER) {
        for (int r = 0; r < world->ranks; r++)
            memcpy((char *)result + r * work->count * size, world->work[r]->send, work->count * size);
    } else if (work->kind == BROADCAST) {
        memcpy(result, world->work[work->root]->send, work->count * size);
    } else {
        for (size_t i = 0; i < work->count; i++) {
            float sum = 0;
            for (int r = 0; r < world->ranks; r++) sum += value(world->work[r]->send, work->type, skip + i);
            put(result, work->type, i, sum);
        }
    }
}

static void collective(Work *work) {
    World *world = work->comm->world;
    world->work[work->comm->rank] = work;
    if (!meet(work->comm)) return;
    size_t bytes = result_count(work) * size_of(work->type);
    void *result = calloc(bytes + 1, 1);
    compute(work, result);
    // Nobody's memory changes before all have read it.
    if (meet(work->comm)) memcpy(work->receive, result, bytes);
    free(result);
}

static void exchange(Work *work) {
    Comm *comm = work->comm;
    World *world = comm->world;
    for (Part *part = work->parts; part; part = part->next) {
        if (!part->is_send) continue;
        Message *sent = calloc(1, sizeof *sent), **end = &world->messages;
        *sent = (Message){comm->rank, part->peer, 0, part->at, part->bytes, NULL};
        while (*end) end = &(*end)->next;
        part->sent = *end = sent;
    }
    pthread_cond_broadcast(&changed);
    for (Part *part = work->parts; part; part = part->next) {
        if (part->is_send) continue;
        Message *message = NULL;
        while (!comm->over) {
            for (message = world->messages; message; message = message->next)
                if (!message->taken && message->from == part->peer && message->to == comm->rank) break;
            if (message) break;
            pthread_cond_wait(&changed, &lock);
        }
        if (comm->over) return;
        if (message->bytes != part->bytes) note("misuse: sent and received differ in length");
        else memcpy(part->at, message->at, part->bytes);
        message->taken = 1;
        pthread_cond_broadcast(&changed);
    }
    for (Part *part = work->parts; part; part = part->next)
        while (part->is_send && !part->sent->taken && !comm->over) pthread_cond_wait(&changed, &lock);
}

static void run(Work *work) {
    Comm *comm = work->comm;
    if (work->kind == RECORD) {
        if (work->event->completed < work->ticket) work->event->completed = work->ticket;
        pthread_cond_broadcast(&changed);
        return;
    }
    if (work->kind == WAIT) {
        while (work->event->completed < work->ticket) pthread_cond_wait(&changed, &lock);
        return;
    }
    // Late enough for those who do not wait.
    pthread_mutex_unlock(&lock);
    usleep(2000);
    pthread_mutex_lock(&lock);
    comm->operations++;
    int is_broken = BROKEN_FROM && comm->operations >= BROKEN_FROM;
    if (is_broken) comm->error = REMOTE_ERROR;
    if (is_broken || (STUCK_FROM && comm->operations >= STUCK_FROM)) {
        something_is_stuck = 1;
        pthread_cond_broadcast(&changed);
        while (!comm->over) pthread_cond_wait(&changed, &lock);
    }
    if (comm->over) return;
    if (work->kind == EXCHANGE) exchange(work);
    else collective(work);
}

static void *work_off(void *argument) {
    Stream *stream = argument;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!stream->first && !stream->closing) pthread_cond_wait(&changed, &lock);
        if (!stream->first) break;
        run(stream->first);
        Work *done = stream->first;
        // Not freed: other ranks may look at it.
        stream->first = done->next;
    }
    note("stream ended");
    pthread_mutex_unlock(&lock);
    return NULL;
}

// With the lock held, as all that follows with a small first letter.
static void give(Stream *stream, Work *work) {
    if (stream->first) stream->last->next = work;
    else stream->first = work;
    stream->last = work;
    pthread_cond_broadcast(&changed);
}

// --- NCCL ---

int ncclGetVersion(int *version) {
    *version = VERSION;
    return SUCCESS;
}

const char *ncclGetErrorString(int result) {
    switch (result) {
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    case INVALID_ARGUMENT: return "invalid argument";
    default: return "some error";
    }
}

const char *ncclGetLastError(Comm *comm) {
    (void)comm;
    return "the stub's last words";
}

int ncclGetUniqueId(UniqueId *id) {
    static int count;
    pthread_mutex_lock(&lock);
    memset(id, 0, sizeof *id);
    // Not only at the beginning, so that all of it has to arrive.
    snprintf(id->bytes, 64, "stub %d", ++count);
    snprintf(id->bytes + 100, 28, "end %d", count);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int ncclCommInitRankConfig(Comm **comm, int ranks, UniqueId id, int rank, Config *config) {
    if (config->size != sizeof(Config) || config->magic != 0xcafebeef || config->version != 21800 || config->blocking)
        return INVALID_ARGUMENT;
    if (ranks > MOST_RANKS || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    pthread_mutex_lock(&lock);
    World *world = worlds;
    while (world && memcmp(&world->id, &id, sizeof id)) world = world->next;
    if (!world) {
        world = calloc(1, sizeof *world);
        *world = (World){.id = id, .ranks = ranks, .next = worlds};
        worlds = world;
    }
    world->joined++;
    *comm = calloc(1, sizeof **comm);
    **comm = (Comm){.world = world, .rank = rank};
    note("communicator made");
    pthread_mutex_unlock(&lock);
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(Comm *comm, int *state) {
    pthread_mutex_lock(&lock);
    *state = SUCCESS;
#ifdef INIT_NEVER_ENDS
    *state = IN_PROGRESS;
#endif
    if (comm->over) note("misuse: a communicator that is over");
    else if (comm->error) *state = comm->error;
    else if (comm->world->joined < comm->world->ranks) *state = IN_PROGRESS;
    else if (comm->prepared && comm->looks-- > 0) *state = IN_PROGRESS;
    else if (comm->prepared) {
        give(comm->stream, comm->prepared);
        comm->prepared = NULL;
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

// NCCL gives it to the stream when it has been asked for its state often enough.
static int prepare(Work work, Stream *stream) {
    Comm *comm = work.comm;
    pthread_mutex_lock(&lock);
    int is_ready = !comm->prepared && !comm->over && comm->world->joined == comm->world->ranks;
    if (!stream->waits_for_default_stream) note("misuse: an operation that does not wait for the default stream");
    stream->waits_for_default_stream = 0;
    if (is_ready) {
        comm->prepared = malloc(sizeof work);
        *comm->prepared = work;
        comm->stream = stream;
        comm->looks = 2;
    } else {
        note("misuse: an operation before the one before it was through");
    }
    pthread_mutex_unlock(&lock);
    return is_ready ? IN_PROGRESS : INVALID_ARGUMENT;
}

static int prepare_collective(Kind kind, const void *send, void *receive, size_t count, int type, int root, Comm *comm,
                              Stream *stream) {
    Work work = {.kind = kind, .comm = comm, .send = send, .receive = receive, .count = count};
    work.type = type;
    work.root = root;
    if (type != FLOAT32 && type != BFLOAT16) return INVALID_ARGUMENT;
    return prepare(work, stream);
}

int ncclAllReduce(const void *send, void *receive, size_t count, int type, int op, Comm *comm, Stream *stream) {
    return op ? INVALID_ARGUMENT : prepare_collective(ALL_REDUCE, send, receive, count, type, 0, comm, stream);
}

#ifndef WITHOUT_REDUCE_SCATTER
int ncclReduceScatter(const void *send, void *receive, size_t count, int type, int op, Comm *comm, Stream *stream) {
    return op ? INVALID_ARGUMENT : prepare_collective(REDUCE_SCATTER, send, receive, count, type, 0, comm, stream);
}
#endif

int ncclAllGather(const void *send, void *receive, size_t count, int type, Comm *comm, Stream *stream) {
    return prepare_collective(ALL_GATHER, send, receive, count, type, 0, comm, stream);
}

int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, Comm *comm, Stream *stream) {
    return prepare_collective(BROADCAST, send, receive, count, type, root, comm, stream);
}

static int add_part(int is_send, void *at, size_t count, int type, int peer, Comm *comm, Stream *stream) {
    if (!depth) {
        note("misuse: a message outside of a group");
        return INVALID_USAGE;
    }
    Part *part = calloc(1, sizeof *part), **end = &group;
    *part = (Part){.peer = peer, .is_send = is_send, .at = at, .bytes = count * size_of(type)};
    while (*end) end = &(*end)->next;
    *end = part;
    group_comm = comm;
    group_stream = stream;
    return SUCCESS;
}

int ncclSend(const void *at, size_t count, int type, int peer, Comm *comm, Stream *stream) {
    return add_part(1, (void *)at, count, type, peer, comm, stream);
}

int ncclRecv(void *at, size_t count, int type, int peer, Comm *comm, Stream *stream) {
    return add_part(0, at, count, type, peer, comm, stream);
}

int ncclGroupStart(void) {
    depth++;
    return SUCCESS;
}

int ncclGroupEnd(void) {
    Part *parts = group;
    group = NULL;
    depth--;
    return parts ? prepare((Work){.kind = EXCHANGE, .comm = group_comm, .parts = parts}, group_stream) : SUCCESS;
}

static int end(Comm *comm, const char *how) {
    pthread_mutex_lock(&lock);
    note(comm->over ? "misuse: a communicator was ended twice" : how);
    comm->over = 1;
    pthread_cond_broadcast(&changed);
#ifdef ABORT_NEVER_RETURNS
    for (;;) pthread_cond_wait(&changed, &lock);
#endif
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int ncclCommAbort(Comm *comm) { return end(comm, "communicator aborted"); }

int ncclCommDestroy(Comm *comm) { return end(comm, "communicator destroyed"); }

// --- the CUDA runtime ---

static void enter(void) {
    // torch would take this for the error of its next kernel.
    if (last_error == NOT_READY) note("misuse: an error was left behind");
}

const char *cudaGetErrorString(int code) { return code == INVALID_DEVICE ? "invalid device ordinal" : "some error"; }

int cudaGetLastError(void) {
    int error = last_error;
    last_error = 0;
    return error;
}

int cudaSetDevice(int number) {
    enter();
    if (number < 0 || number >= DEVICES) return INVALID_DEVICE;
    device = number;
    return 0;
}

int cudaDeviceGetPCIBusId(char *id, int length, int number) {
    enter();
    snprintf(id, length, "0000:0%d:00.0", number);
    return 0;
}

int cudaStreamCreateWithFlags(Stream **stream, unsigned flags) {
    enter();
    if (flags != 1) note("misuse: a stream that waits for the default stream");
    *stream = calloc(1, sizeof **stream);
    note("stream made");
    pthread_create(&(*stream)->thread, NULL, work_off, *stream);
    pthread_detach((*stream)->thread);
    return 0;
}

int cudaStreamDestroy(Stream *stream) {
    pthread_mutex_lock(&lock);
    stream->closing = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return 0;
}

int cudaEventCreateWithFlags(Event **event, unsigned flags) {
    enter();
    if (flags != 2) note("misuse: an event that takes the time");
    *event = calloc(1, sizeof **event);
    note("event made");
    return 0;
}

int cudaEventDestroy(Event *event) {
    (void)event;
    note("event ended");
    return 0;
}

// The default stream is torch's, which on the host has done everything already.
int cudaEventRecord(Event *event, Stream *stream) {
    enter();
    pthread_mutex_lock(&lock);
    unsigned long ticket = ++event->recorded;
    event->is_of_default_stream = !stream;
    if (stream) {
        Work *work = malloc(sizeof *work);
        *work = (Work){.kind = RECORD, .event = event, .ticket = ticket};
        give(stream, work);
    } else {
        event->completed = ticket;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

// The default stream waits by having its host wait, which would be for ever where something is stuck.
int cudaStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
    (void)flags;
    enter();
    pthread_mutex_lock(&lock);
    unsigned long ticket = event->recorded;
    if (stream) {
        Work *work = malloc(sizeof *work);
        *work = (Work){.kind = WAIT, .event = event, .ticket = ticket};
        give(stream, work);
        stream->waits_for_default_stream |= event->is_of_default_stream;
    } else {
        while (event->completed < ticket && !something_is_stuck) pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

int cudaEventQuery(Event *event) {
    enter();
    pthread_mutex_lock(&lock);
    int is_over = event->completed >= event->recorded;
    pthread_mutex_unlock(&lock);
    if (!is_over) last_error = NOT_READY;
    return is_over ? 0 : NOT_READY;
}
