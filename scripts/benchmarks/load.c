/* A closed-loop load generator for HTTP/1.1: each connection sends its next request when the last reply is whole.
 *
 *   load (--tcp PORT | --unix PATH) --body FILE [--body FILE ...] [--path /v1/chat/completions]
 *        [--connections C] (--requests N | --seconds S) [--stream] [--events N] [--fresh] [--stall SECONDS]
 *
 * --requests is for each connection. --stream expects an event stream that ends in [DONE]; --events, how many events
 * come before that. --fresh opens a connection for each request. Connection i sends body i modulo the bodies given.
 *
 * Every reply is checked: status 200, framing complete, a JSON object or a whole stream. Prints one line of JSON:
 * counts, rates, and microseconds from a request's departure to the first byte, the first event and the last byte. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "ready.h"

enum { MAX_CONNECTIONS = 1024, MAX_BODIES = 64, HEAD = 16384, BUFFER = 262144, LINE = 16 };

enum at { IN_HEAD, IN_BODY, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER, UNTIL_CLOSE, WHOLE, BAD };

struct reply {
    enum at at;
    int status, closes, done, refused; /* done: [DONE] was seen; refused: an error event inside a stream */
    long long left, events;
    size_t head_used, line_used, size_used;
    char head[HEAD], line[LINE], size[20], first, last;
};

struct conn {
    int fd, idle;
    size_t sent, answered; /* of the request; bytes of the reply */
    long begun;            /* requests started */
    double start_us;
    int event_seen;
    struct reply reply;
};

struct request {
    char *text;
    size_t length;
};

struct samples {
    double *at;
    size_t used, room;
};

static struct {
    int port, connections, stream, fresh;
    const char *unix_path, *path;
    long requests, events;
    double seconds, stall;
} want = {.connections = 1, .path = "/v1/chat/completions", .events = -1, .stall = 30};

static struct conn conns[MAX_CONNECTIONS];
static struct request bodies[MAX_BODIES];
static int body_count, queue, running;
static double started_us, progress_us;
static long replies, errors, truncated, reconnects;
static long long events;
static struct samples first_byte, first_event, total;
static char buffer[BUFFER], complaint[200];
static int by_fd[65536];

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void keep(struct samples *s, double value) {
    if (s->used == s->room) s->at = realloc(s->at, (s->room = s->room ? s->room * 2 : 4096) * sizeof *s->at);
    s->at[s->used++] = value;
}

static void complain(const char *what, const char *detail) {
    if (complaint[0]) return;
    size_t used = (size_t)snprintf(complaint, sizeof complaint, "%s: %.120s", what, detail);
    for (size_t i = 0; i < used && i < sizeof complaint; i++) /* it goes into JSON as it is */
        if ((unsigned char)complaint[i] < 32 || complaint[i] == '"' || complaint[i] == '\\') complaint[i] = ' ';
}

/* -- reading a reply, in pieces of any size */

static void end_line(struct reply *r) {
    if (r->line_used >= 5 && !memcmp(r->line, "data:", 5)) {
        if (r->line_used >= 12 && !memcmp(r->line, "data: [DONE]", 12)) r->done = 1;
        else if (r->line_used >= 14 && !memcmp(r->line, "data: {\"error\"", 14)) r->refused = 1;
        else r->events++;
    }
    r->line_used = 0;
}

static void scan(struct reply *r, const char *at, size_t length) {
    const char *end = at + length;
    if (!length) return;
    if (!r->first) r->first = *at;
    r->last = end[-1] == '\n' ? r->last : end[-1];
    while (want.stream && at < end) {
        if (r->line_used < LINE) {
            if (*at == '\n') end_line(r);
            else r->line[r->line_used++] = *at;
            at++;
            continue;
        }
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline) return;
        at = newline + 1;
        end_line(r);
    }
}

static void read_head(struct reply *r) {
    r->head[r->head_used] = 0;
    if (sscanf(r->head, "HTTP/1.%*c %d", &r->status) != 1) {
        r->at = BAD;
        return;
    }
    r->at = UNTIL_CLOSE;
    for (char *line = strstr(r->head, "\r\n"); line && line[2] != '\r' && line[2]; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) {
            r->left = strtoll(line + 17, NULL, 10);
            r->at = r->left ? IN_BODY : WHOLE;
        } else if (!strncasecmp(line + 2, "transfer-encoding:", 18)) r->at = IN_SIZE;
        else if (!strncasecmp(line + 2, "connection: close", 17)) r->closes = 1;
    }
}

static void read_size(struct reply *r, char c) {
    if (c != '\n') {
        if (r->size_used < sizeof r->size - 1) r->size[r->size_used++] = c;
        return;
    }
    char *end;
    r->size[r->size_used] = 0;
    r->left = strtoll(r->size, &end, 16);
    r->at = end == r->size || r->left < 0 ? BAD : r->left ? IN_CHUNK : IN_TRAILER;
    r->size_used = 0;
}

static void read_byte(struct reply *r, char c) {
    switch (r->at) {
    case IN_HEAD:
        if (r->head_used == HEAD - 1) r->at = BAD;
        else r->head[r->head_used++] = c;
        if (c == '\n' && r->head_used >= 4 && !memcmp(r->head + r->head_used - 4, "\r\n\r\n", 4)) read_head(r);
        break;
    case IN_SIZE: read_size(r, c); break;
    case AFTER_CHUNK:
        if (c == '\n') r->at = IN_SIZE;
        break;
    case IN_TRAILER: /* trailer lines are counted in size_used; the empty one ends the reply */
        if (c == '\n' && !r->size_used) r->at = WHOLE;
        else r->size_used = c == '\n' ? 0 : r->size_used + (c != '\r');
        break;
    default: r->at = BAD; /* bytes after the end */
    }
}

static void feed(struct reply *r, const char *at, size_t length) {
    while (length && r->at != BAD) {
        if (r->at != IN_BODY && r->at != IN_CHUNK && r->at != UNTIL_CLOSE) {
            read_byte(r, *at++);
            length--;
            continue;
        }
        size_t part = r->at == UNTIL_CLOSE || (long long)length < r->left ? length : (size_t)r->left;
        scan(r, at, part);
        at += part;
        length -= part;
        if (r->at == UNTIL_CLOSE || (r->left -= (long long)part)) continue;
        r->at = r->at == IN_BODY ? WHOLE : AFTER_CHUNK;
    }
}

/* -- connections */

static int dial(void) {
    int on = 1, fd = socket(want.unix_path ? AF_UNIX : AF_INET, SOCK_STREAM, 0), failed;
    if (want.unix_path) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        snprintf(at.sun_path, sizeof at.sun_path, "%s", want.unix_path);
        failed = connect(fd, (struct sockaddr *)&at, sizeof at);
    } else {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)want.port)};
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        failed = connect(fd, (struct sockaddr *)&at, sizeof at);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    if (fd < 0 || failed) {
        complain("connect", strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    ready_add(queue, fd);
    return fd;
}

static void send_rest(struct conn *c) {
    struct request *request = &bodies[(c - conns) % body_count];
    while (c->sent < request->length) {
        ssize_t sent = send(c->fd, request->text + c->sent, request->length - c->sent, 0);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) { /* full: wait for room; gone: reading will say so */
            ready_writable(queue, c->fd, errno == EAGAIN || errno == EWOULDBLOCK);
            return;
        }
        if ((c->sent += (size_t)sent) == request->length && sent < (ssize_t)request->length)
            ready_writable(queue, c->fd, 0);
    }
}

static void begin(struct conn *c) {
    int over = want.requests ? c->begun >= want.requests : now_us() - started_us >= want.seconds * 1e6;
    if (over || errors > 1000) {
        c->idle = 1;
        running--;
        return;
    }
    c->begun++;
    c->sent = c->answered = 0;
    c->event_seen = 0;
    memset(&c->reply, 0, offsetof(struct reply, head));
    c->reply.first = c->reply.last = 0;
    c->start_us = now_us();
    if (c->fd < 0 && (c->fd = dial()) >= 0) by_fd[c->fd] = (int)(c - conns);
    if (c->fd >= 0) send_rest(c);
    else {
        errors++;
        c->idle = 1;
        running--;
    }
}

static void hang_up(struct conn *c) {
    close(c->fd);
    c->fd = -1;
}

static void finish(struct conn *c) {
    struct reply *r = &c->reply;
    int whole = r->at == WHOLE;
    int good = whole && r->status == 200 &&
               (want.stream ? r->done && !r->refused && (want.events < 0 || r->events == want.events)
                            : r->first == '{' && r->last == '}');
    replies++;
    if (good) {
        keep(&total, now_us() - c->start_us);
    } else {
        errors++;
        if (!whole || (want.stream && r->status == 200 && !r->done)) truncated++;
        char detail[160];
        snprintf(detail, sizeof detail, "status %d, %s, %lld events, first line %.60s", r->status,
                 whole ? "framed whole" : "cut short", r->events, c->answered ? r->head : "(no answer)");
        complain("bad reply", detail);
    }
    if (want.fresh || !whole || r->closes) {
        hang_up(c);
        if (!want.fresh) reconnects++;
    }
    begin(c);
}

static void receive(struct conn *c) {
    ssize_t got = recv(c->fd, buffer, BUFFER, 0);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
    struct reply *r = &c->reply;
    if (c->idle) { /* the far side closes a connection that we are done with */
        hang_up(c);
        return;
    }
    if (got <= 0) {
        if (got == 0 && r->at == UNTIL_CLOSE) r->at = WHOLE, r->closes = 1;
        else r->at = BAD;
        finish(c);
        return;
    }
    progress_us = now_us();
    if (!c->answered) keep(&first_byte, progress_us - c->start_us);
    c->answered += (size_t)got;
    long long before = r->events;
    feed(r, buffer, (size_t)got);
    events += r->events - before;
    if (!c->event_seen && r->events) {
        c->event_seen = 1;
        keep(&first_event, progress_us - c->start_us);
    }
    if (r->at == WHOLE || r->at == BAD) finish(c);
}

static void run(void) {
    struct ready_event ready[READY_BATCH];
    started_us = progress_us = now_us();
    running = want.connections;
    for (int i = 0; i < want.connections; i++) begin(&conns[i]);
    while (running > 0) {
        int count = ready_wait(queue, ready, 1000);
        for (int i = 0; i < count; i++) {
            struct conn *c = &conns[by_fd[ready[i].fd]];
            if (c->fd != ready[i].fd) continue;
            if (ready[i].writable) send_rest(c);
            if (ready[i].readable) receive(c);
        }
        if (!count && now_us() - progress_us > want.stall * 1e6) {
            complain("stalled", "no byte came for a long time");
            errors += running;
            truncated += running;
            return;
        }
    }
}

/* -- in and out */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s) {
    if (!s->used) {
        printf(", \"%s\": null", name);
        return;
    }
    qsort(s->at, s->used, sizeof *s->at, ascending);
#define AT(fraction) s->at[(size_t)((double)(s->used - 1) * (fraction))]
    printf(", \"%s\": {\"min\": %.1f, \"median\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name, AT(0),
           AT(0.5), AT(0.9), AT(0.99), AT(1));
#undef AT
}

static void report(void) {
    double seconds = (now_us() - started_us) / 1e6;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                 (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("{\"requests\": %ld, \"errors\": %ld, \"truncated\": %ld, \"reconnects\": %ld, \"complaint\": \"%s\"", replies,
           errors, truncated, reconnects, complaint);
    printf(", \"seconds\": %.4f, \"requests_per_s\": %.1f, \"events\": %lld, \"events_per_s\": %.1f, \"cpu_s\": %.3f",
           seconds, (double)replies / seconds, events, (double)events / seconds, cpu);
    print_samples("first_byte_us", &first_byte);
    print_samples("first_event_us", &first_event);
    print_samples("total_us", &total);
    printf("}\n");
}

static void add_body(const char *file) {
    FILE *f = fopen(file, "rb");
    struct stat info;
    if (!f || fstat(fileno(f), &info) || body_count == MAX_BODIES) {
        perror(file);
        exit(2);
    }
    struct request *request = &bodies[body_count++];
    request->text = malloc((size_t)info.st_size + 1024);
    int head = snprintf(request->text, 1024,
                        "POST %.400s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        "Accept: */*\r\nUser-Agent: bench\r\n%sContent-Length: %lld\r\n\r\n",
                        want.path, want.fresh ? "Connection: close\r\n" : "", (long long)info.st_size);
    request->length = (size_t)head + fread(request->text + head, 1, (size_t)info.st_size, f);
    fclose(f);
}

int main(int argc, char **argv) {
    const char *files[MAX_BODIES];
    int file_count = 0;
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(name, "--stream")) want.stream = 1;
        else if (!strcmp(name, "--fresh")) want.fresh = 1;
        else if (!value) return fprintf(stderr, "load: %s needs a value\n", name), 2;
        else if (i++, !strcmp(name, "--tcp")) want.port = atoi(value);
        else if (!strcmp(name, "--unix")) want.unix_path = value;
        else if (!strcmp(name, "--path")) want.path = value;
        else if (!strcmp(name, "--connections")) want.connections = atoi(value);
        else if (!strcmp(name, "--requests")) want.requests = atol(value);
        else if (!strcmp(name, "--seconds")) want.seconds = atof(value);
        else if (!strcmp(name, "--events")) want.events = atol(value);
        else if (!strcmp(name, "--stall")) want.stall = atof(value);
        else if (!strcmp(name, "--body") && file_count < MAX_BODIES) files[file_count++] = value;
        else return fprintf(stderr, "load: unknown option %s\n", name), 2;
    }
    if ((!want.port && !want.unix_path) || !file_count || (want.requests <= 0 && want.seconds <= 0) ||
        want.connections < 1 || want.connections > MAX_CONNECTIONS)
        return fprintf(stderr, "load: needs --tcp or --unix, --body, and --requests or --seconds; see load.c\n"), 2;
    for (int i = 0; i < file_count; i++) add_body(files[i]);
    signal(SIGPIPE, SIG_IGN);
    queue = ready_open();
    for (int i = 0; i < want.connections; i++) {
        if ((conns[i].fd = dial()) < 0) return fprintf(stderr, "load: %s\n", complaint), 1;
        by_fd[conns[i].fd] = i;
    }
    run();
    report();
    return 0;
}
