/* A fake OpenAI-compatible server, fast enough never to be the bottleneck of what stands before it.
 *
 *   upstream [--port N]      listens on 127.0.0.1; prints "port N"; ends when its standard input does.
 *
 * GET /health, GET /v1/models (one model, "fake"), POST /v1/chat/completions. A body with "stream": true is answered
 * with a role delta, "max_tokens" events (100 where absent) and [DONE]: one HTTP chunk and one send per event, a turn
 * of one event for every stream, as an engine that decodes a batch does. "pace_us" puts that many microseconds
 * between the events of a stream; without it they leave as fast as the socket takes them.
 *
 * Requests carry a Content-Length; the next one is read when the last is answered (no pipelining). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

#include "ready.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS: SIGPIPE is ignored for the whole process instead */
#endif

enum { MAX_FD = 4096, MAX_REQUEST = 8 << 20, TEXTS = 16, JSON = 448, CHUNK = 512 };

enum stage { IDLE, FIXED, EVENTS, TAIL };

struct piece {
    const char *at;
    size_t left;
};

struct conn {
    int open, blocked, turn;
    enum stage stage;
    char *in;
    size_t used, room;
    struct piece out;
    long events, pace_us;
    long long due_us;
};

static struct conn conns[MAX_FD];
static int streams[MAX_FD], stream_count;
static int queue;
static char models_reply[1024], chat_reply[1024], health_reply[256], missing_reply[512], length_reply[512];
static char stream_head[1024], stream_tail[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
static char chunks[TEXTS][CHUNK], last_chunk[CHUNK];

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* -- what is said */

#define CHUNK_JSON(delta, finish)                                                                                      \
    "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"               \
    "\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":" delta ",\"finish_reason\":" finish "}]}"

static void frame_event(char *out, size_t room, const char *json) {
    snprintf(out, room, "%zx\r\ndata: %s\n\n\r\n", strlen(json) + 8, json);
}

static void frame_reply(char *out, size_t room, const char *status, const char *json) {
    snprintf(out, room, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status,
             strlen(json), json);
}

static void prepare(void) {
    static const char *texts[TEXTS] = {" the", " of", "\\n", " mesh",    " of many", " machines", ",", " each",
                                       " one", " a",  " \\\"", " \xf0\x9f\x99\x82", " node", ".", " It", " is"};
    char json[JSON], first[CHUNK];
    for (int i = 0; i < TEXTS; i++) {
        snprintf(json, sizeof json, CHUNK_JSON("{\"content\":\"%s\"}", "null"), texts[i]);
        frame_event(chunks[i], CHUNK, json);
    }
    frame_event(last_chunk, CHUNK, CHUNK_JSON("{}", "\"length\""));
    frame_event(first, CHUNK, CHUNK_JSON("{\"role\":\"assistant\",\"content\":null}", "null"));
    snprintf(stream_head, sizeof stream_head,
             "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
             "Transfer-Encoding: chunked\r\n\r\n%s",
             first);
    frame_reply(models_reply, sizeof models_reply, "200 OK",
                "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\",\"created\":1700000000,"
                "\"owned_by\":\"bench\"}]}");
    frame_reply(chat_reply, sizeof chat_reply, "200 OK",
                "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,"
                "\"model\":\"fake\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
                "\"A mesh of many machines, each one a node.\"},\"finish_reason\":\"stop\"}],\"usage\":"
                "{\"prompt_tokens\":12,\"completion_tokens\":11,\"total_tokens\":23}}");
    frame_reply(health_reply, sizeof health_reply, "200 OK", "{\"status\":\"ok\"}");
    frame_reply(missing_reply, sizeof missing_reply, "404 Not Found",
                "{\"error\":{\"message\":\"no such path\",\"type\":\"invalid_request_error\",\"code\":404}}");
    frame_reply(length_reply, sizeof length_reply, "411 Length Required",
                "{\"error\":{\"message\":\"send a Content-Length\",\"type\":\"invalid_request_error\",\"code\":411}}");
}

/* -- connections */

static void drop(int fd) {
    struct conn *c = &conns[fd];
    if (!c->open) return;
    if (c->stage != IDLE)
        for (int i = 0; i < stream_count; i++)
            if (streams[i] == fd) streams[i] = streams[--stream_count];
    free(c->in);
    *c = (struct conn){0};
    close(fd);
}

static void welcome(int listener) {
    for (;;) {
        int fd = accept(listener, NULL, NULL), on = 1;
        if (fd < 0) return;
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        conns[fd] = (struct conn){.open = 1, .in = malloc(16384), .room = 16384};
        ready_add(queue, fd);
    }
}

/* 1: the piece has left; 0: the socket is full and will say when it is not; -1: the connection is gone. */
static int push(int fd) {
    struct conn *c = &conns[fd];
    while (c->out.left) {
        ssize_t sent = send(fd, c->out.at, c->out.left, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK) {
                drop(fd);
                return -1;
            }
            if (!c->blocked) ready_writable(queue, fd, c->blocked = 1);
            return 0;
        }
        c->out.at += sent;
        c->out.left -= (size_t)sent;
    }
    if (c->blocked) ready_writable(queue, fd, c->blocked = 0);
    return 1;
}

static void say(struct conn *c, enum stage stage, const char *text) {
    c->stage = stage;
    c->out = (struct piece){text, strlen(text)};
}

/* -- requests */

/* The value of a top-level looking member, or NULL. Enough for bodies that the load generator writes. */
static const char *member(const char *body, const char *quoted_name) {
    const char *at = strstr(body, quoted_name);
    if (!at) return NULL;
    at += strlen(quoted_name);
    while (*at == ' ' || *at == ':') at++;
    return at;
}

static long number(const char *body, const char *quoted_name, long otherwise) {
    const char *at = member(body, quoted_name);
    return at ? strtol(at, NULL, 10) : otherwise;
}

static void answer(int fd, const char *head, const char *body) {
    struct conn *c = &conns[fd];
    const char *stream;
    if (!strncmp(head, "GET /health", 11)) say(c, FIXED, health_reply);
    else if (!strncmp(head, "GET /v1/models", 14)) say(c, FIXED, models_reply);
    else if (strncmp(head, "POST /v1/chat/completions", 25)) say(c, FIXED, missing_reply);
    else if (!(stream = member(body, "\"stream\"")) || strncmp(stream, "true", 4)) say(c, FIXED, chat_reply);
    else {
        say(c, EVENTS, stream_head);
        c->events = number(body, "\"max_tokens\"", 100);
        c->pace_us = number(body, "\"pace_us\"", 0);
        c->due_us = c->pace_us ? now_us() : 0;
        streams[stream_count++] = fd;
    }
    if (push(fd) == 1 && c->stage == FIXED) c->stage = IDLE;
}

/* -1: no length (or a chunked body); otherwise the Content-Length, 0 for a GET without one. */
static long body_length(const char *head) {
    long length = strncmp(head, "POST", 4) ? 0 : -1;
    for (const char *line = strstr(head, "\r\n"); line && line[2]; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) length = strtol(line + 17, NULL, 10);
        if (!strncasecmp(line + 2, "transfer-encoding:", 18)) return -1;
    }
    return length;
}

static void take_request(int fd) {
    struct conn *c = &conns[fd];
    while (c->open && c->stage == IDLE && c->used) {
        c->in[c->used] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return;
        end[2] = 0;
        long length = body_length(c->in);
        if (length < 0 || length > MAX_REQUEST) {
            say(c, FIXED, length_reply);
            if (push(fd) >= 0) drop(fd);
            return;
        }
        size_t head = (size_t)(end + 4 - c->in), whole = head + (size_t)length;
        end[2] = '\r';
        if (c->used < whole) return;
        char kept = c->in[whole];
        c->in[whole] = 0;
        answer(fd, c->in, c->in + head);
        if (!c->open) return;
        c->in[whole] = kept;
        memmove(c->in, c->in + whole, c->used - whole);
        c->used -= whole;
    }
}

static void listen_to(int fd) {
    struct conn *c = &conns[fd];
    for (;;) {
        if (c->used + 1 >= c->room) {
            if (c->room >= MAX_REQUEST) {
                drop(fd);
                return;
            }
            c->in = realloc(c->in, c->room *= 2);
        }
        size_t room = c->room - c->used - 1;
        ssize_t got = recv(fd, c->in + c->used, room, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (got <= 0) {
            drop(fd);
            return;
        }
        c->used += (size_t)got;
        take_request(fd);
        if (!c->open || (size_t)got < room) return;
    }
}

/* -- streams */

static void next_piece(struct conn *c) {
    if (c->stage == TAIL) c->stage = IDLE;
    else if (c->events <= 0) say(c, TAIL, stream_tail);
    else say(c, EVENTS, --c->events ? chunks[c->turn++ % TEXTS] : last_chunk);
}

/* One event for each stream that is due and has room. Returns for how many milliseconds nothing is to be done. */
static int take_turns(void) {
    int wait_ms = -1;
    long long now = 0;
    for (int i = stream_count - 1; i >= 0; i--) {
        int fd = streams[i];
        struct conn *c = &conns[fd];
        if (c->blocked) continue;
        if (c->pace_us && c->stage == EVENTS) {
            if (!now) now = now_us();
            if (now < c->due_us) {
                int wait = (int)((c->due_us - now + 999) / 1000);
                if (wait_ms < 0 || wait < wait_ms) wait_ms = wait;
                continue;
            }
            c->due_us += c->pace_us;
        }
        if (c->out.left == 0) next_piece(c);
        if (c->stage == IDLE) {
            streams[i] = streams[--stream_count];
            take_request(fd); /* it may have come during the tail, and be a stream again */
            wait_ms = 0;
        } else if (push(fd) == 1)
            wait_ms = 0;
    }
    return wait_ms;
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    socklen_t size = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 1024)) {
        perror("upstream: listen");
        exit(1);
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    getsockname(fd, (struct sockaddr *)&at, &size);
    printf("port %d\n", ntohs(at.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv) {
    int port = 0;
    if (argc == 3 && !strcmp(argv[1], "--port")) port = atoi(argv[2]);
    else if (argc != 1) return fprintf(stderr, "usage: upstream [--port N]\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    prepare();
    queue = ready_open();
    int listener = listen_on(port), timeout_ms = -1;
    ready_add(queue, listener);
    int leashed = ready_add(queue, STDIN_FILENO) == 0; /* a plain file cannot be watched, and needs not */
    struct ready_event events[READY_BATCH];
    for (;;) {
        int count = ready_wait(queue, events, timeout_ms);
        for (int i = 0; i < count; i++) {
            int fd = events[i].fd;
            char ignored[64];
            if (fd == listener) welcome(listener);
            else if (leashed && fd == STDIN_FILENO) {
                if (read(fd, ignored, sizeof ignored) <= 0) return 0;
            } else {
                if (events[i].writable && conns[fd].open && push(fd) == 1 && conns[fd].stage == FIXED) {
                    conns[fd].stage = IDLE;
                    take_request(fd);
                }
                if (events[i].readable && conns[fd].open) listen_to(fd);
            }
        }
        timeout_ms = take_turns();
    }
}
