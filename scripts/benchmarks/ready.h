/* Which sockets are ready: epoll on Linux, kqueue on macOS and the BSDs, behind four functions.
 *
 * Level-triggered. Every descriptor added is watched for reading; ready_writable turns the watch for room to write on
 * and off. A closed descriptor leaves by itself. */
#ifndef READY_H
#define READY_H

#include <errno.h>
#include <unistd.h>

struct ready_event {
    int fd, readable, writable;
};

enum { READY_BATCH = 256 };

#if defined(__linux__)
#include <sys/epoll.h>

static int ready_open(void) { return epoll_create1(EPOLL_CLOEXEC); }

static int ready_add(int queue, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};
    return epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event);
}

static int ready_writable(int queue, int fd, int on) {
    struct epoll_event event = {.events = on ? EPOLLIN | EPOLLOUT : EPOLLIN, .data = {.fd = fd}};
    return epoll_ctl(queue, EPOLL_CTL_MOD, fd, &event);
}

/* Waits at most timeout_ms (-1: for ever); returns how many of out[] were filled, 0 on a signal. */
static int ready_wait(int queue, struct ready_event *out, int timeout_ms) {
    struct epoll_event events[READY_BATCH];
    int count = epoll_wait(queue, events, READY_BATCH, timeout_ms);
    for (int i = 0; i < count; i++) {
        unsigned flags = events[i].events;
        out[i] = (struct ready_event){
            events[i].data.fd, (flags & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0, (flags & (EPOLLOUT | EPOLLERR)) != 0};
    }
    return count < 0 && errno == EINTR ? 0 : count;
}

#else
#include <sys/types.h>
#include <sys/event.h>
#include <sys/time.h>

static int ready_open(void) { return kqueue(); }

static int ready_change(int queue, int fd, int filter, int flags) {
    struct kevent change;
    EV_SET(&change, fd, filter, flags, 0, 0, NULL);
    return kevent(queue, &change, 1, NULL, 0, NULL);
}

static int ready_add(int queue, int fd) { return ready_change(queue, fd, EVFILT_READ, EV_ADD); }

static int ready_writable(int queue, int fd, int on) {
    return ready_change(queue, fd, EVFILT_WRITE, on ? EV_ADD : EV_DELETE);
}

/* Waits at most timeout_ms (-1: for ever); returns how many of out[] were filled, 0 on a signal. */
static int ready_wait(int queue, struct ready_event *out, int timeout_ms) {
    struct kevent events[READY_BATCH];
    struct timespec limit = {timeout_ms / 1000, (timeout_ms % 1000) * 1000000L};
    int count = kevent(queue, NULL, 0, events, READY_BATCH, timeout_ms < 0 ? NULL : &limit);
    for (int i = 0; i < count; i++)
        out[i] = (struct ready_event){
            (int)events[i].ident, events[i].filter == EVFILT_READ, events[i].filter == EVFILT_WRITE};
    return count < 0 && errno == EINTR ? 0 : count;
}
#endif

#endif
