/*
 * An NBD server that does no work: it answers reads of up to 256 KiB with one static buffer, or with a hole, and
 * forgets writes. It lets requests gather before it receives them, so that it is not woken, at the client's cost, by
 * each. What a client with 64 requests in flight reaches with it is about the most that it can reach with any server;
 * the rows of `make bench` whose limit is the client show how near a real one comes.
 *
 *   ceiling SOCKET data|hole
 *
 * It knows what libnbd's clients say, and serves each in a process of its own. Protocol: the NBD specification, fixed
 * newstyle.
 */
#include <endian.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SIZE     (UINT64_C(1) << 30)
#define LEN_MAX  (256u * 1024)
#define REQUEST  28
#define HEAD_MAX 32
#define BATCH    256 /* answers of one sendmsg, with a head and data each */
/* Tried: 10 to 60 us and 208 KiB to 1 MiB, which make a difference of 5 % to 15 %. */
#define GATHER_NS   30000
#define SEND_BUFFER (1 << 20)

enum { OPT_ABORT = 2, OPT_GO = 7, OPT_STRUCTURED = 8 };
enum { REP_ACK = 1, REP_INFO = 3 };
#define REP_UNSUP    UINT32_C(0x80000001)
#define OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define OPTION_REPLY UINT64_C(0x3e889045565a9)
#define FLAGS        0x0001 /* of the export: the flags are there; neither flush nor trim */

static int sock;
static bool holes;
static char zeroes[LEN_MAX];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void recv_all(void *buf, size_t size)
{
    for (char *p = buf; size;) {
        ssize_t n = recv(sock, p, size, 0);
        if (n <= 0)
            exit(0); /* the client has left */
        p += n;
        size -= (size_t)n;
    }
}

static void send_iov(struct iovec *iov, size_t n)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
    while (msg.msg_iovlen) {
        ssize_t sent = sendmsg(sock, &msg, MSG_NOSIGNAL);
        if (sent < 0)
            exit(0);
        while (msg.msg_iovlen && (size_t)sent >= msg.msg_iov->iov_len) {
            sent -= (ssize_t)msg.msg_iov->iov_len;
            msg.msg_iov++;
            msg.msg_iovlen--;
        }
        if (msg.msg_iovlen) {
            msg.msg_iov->iov_base = (char *)msg.msg_iov->iov_base + sent;
            msg.msg_iov->iov_len -= (size_t)sent;
        }
    }
}

static char *put16(char *p, uint16_t v)
{
    v = htobe16(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}

static char *put32(char *p, uint32_t v)
{
    v = htobe32(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}

static char *put64(char *p, uint64_t v)
{
    v = htobe64(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}

static void option_reply(uint32_t option, uint32_t type, const void *data, uint32_t len)
{
    char head[20], *p = put64(head, OPTION_REPLY);
    put32(put32(put32(p, option), type), len);
    struct iovec iov[] = {{head, sizeof(head)}, {(void *)data, len}};
    send_iov(iov, 2);
}

static void negotiate(void)
{
    char hello[18];
    memcpy(hello, "NBDMAGICIHAVEOPT", 16);
    put16(hello + 16, 3); /* fixed newstyle, no zeroes */
    send_iov(&(struct iovec){hello, sizeof(hello)}, 1);
    recv_all(hello, 4);
    for (;;) {
        struct {
            uint64_t magic;
            uint32_t option, len;
        } head;
        char data[4096], info[12];
        recv_all(&head, sizeof(head));
        uint32_t option = be32toh(head.option), len = be32toh(head.len);
        if (be64toh(head.magic) != OPTION_MAGIC || len > sizeof(data))
            exit(1);
        recv_all(data, len);
        if (option == OPT_GO) {
            put16(put64(put16(info, 0), SIZE), FLAGS);
            option_reply(option, REP_INFO, info, sizeof(info));
            option_reply(option, REP_ACK, NULL, 0);
            return;
        }
        option_reply(option, option == OPT_STRUCTURED || option == OPT_ABORT ? REP_ACK : REP_UNSUP, NULL, 0);
    }
}

/* Writes the head of an answer, and says how much data follows it. */
static size_t answer(char *head, size_t *head_len, uint16_t type, uint64_t cookie_be, const char *request)
{
    uint32_t len;
    memcpy(&len, request + 24, sizeof(len));
    len = be32toh(len);
    char *p;
    if (type != 0) { /* a simple answer: no error */
        p = put32(put32(head, 0x67446698), 0);
        memcpy(p, &cookie_be, 8);
        *head_len = 16;
        return 0;
    }
    p = put16(put16(put32(head, 0x668e33ef), 1), holes ? 2 : 1); /* done; a hole, or data */
    memcpy(p, &cookie_be, 8);
    p = put32(p + 8, holes ? 12 : 8 + len);
    memcpy(p, request + 16, 8);
    if (holes)
        put32(p + 8, len);
    *head_len = holes ? 32 : 28;
    return holes ? 0 : len;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: ceiling SOCKET data|hole\n");
        return 2;
    }
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", argv[1]);
    holes = strcmp(argv[2], "hole") == 0;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(listener, 1) < 0)
        fail(argv[1]);
    for (;;) { /* fio connects twice: to ask for the size, and to work; each gets a process */
        sock = accept(listener, NULL, NULL);
        if (sock < 0)
            fail("accept");
        if (fork() == 0)
            break;
        close(sock);
    }
    close(listener);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1);
    setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &(int){SEND_BUFFER}, sizeof(int));
    negotiate();

    static char in[1 << 20], heads[BATCH][HEAD_MAX];
    static struct iovec iov[2 * BATCH];
    size_t have = 0;
    for (;;) {
        nanosleep(&(struct timespec){.tv_nsec = GATHER_NS}, NULL);
        ssize_t n = recv(sock, in + have, sizeof(in) - have, 0);
        if (n <= 0)
            return 0;
        have += (size_t)n;
        size_t at = 0, answers = 0, n_iov = 0;
        while (have - at >= REQUEST && answers < BATCH) {
            uint16_t type;
            uint32_t len;
            uint64_t cookie;
            memcpy(&type, in + at + 6, 2);
            memcpy(&cookie, in + at + 8, 8);
            memcpy(&len, in + at + 24, 4);
            type = be16toh(type);
            len = be32toh(len);
            if (type == 2 || len > LEN_MAX) /* DISC */
                return 0;
            size_t whole = REQUEST + (type == 1 ? len : 0);
            if (have - at < whole)
                break;
            size_t head_len, data = answer(heads[answers], &head_len, type, cookie, in + at);
            iov[n_iov++] = (struct iovec){heads[answers++], head_len};
            if (data)
                iov[n_iov++] = (struct iovec){zeroes, data};
            at += whole;
        }
        memmove(in, in + at, have - at);
        have -= at;
        if (n_iov)
            send_iov(iov, n_iov);
    }
}
