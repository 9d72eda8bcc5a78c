// SPDX-License-Identifier: MIT
/*
 * Paper 000's other measurement: 8192 ints to the peer and back by TCP.
 *
 *   tcp-roundtrip ADDRESS   sends, waits for the answer, 10 times; prints the times
 *   tcp-roundtrip           answers one that connects
 *
 * The output is that of the sample `roundtrip`, which does the same in shared memory:
 * the peer adds one to each int, so that every one of them can be checked.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <x86intrin.h>

#define PORT	4711
#define INTS	8192
#define RUNS	10
/* How often the first tries to connect, a second apart. */
#define TRIES	60

static int32_t ints[INTS], answer[INTS];

static int receive(int socket, void *buffer)
{
	size_t done = 0;

	while (done < sizeof(ints)) {
		ssize_t more = read(socket, (char *)buffer + done, sizeof(ints) - done);

		if (more <= 0)
			return more ? -errno : -ECONNRESET;
		done += (size_t)more;
	}
	return 0;
}

static int send_all(int socket, const void *buffer)
{
	size_t done = 0;

	while (done < sizeof(ints)) {
		ssize_t more = write(socket, (const char *)buffer + done, sizeof(ints) - done);

		if (more < 0)
			return -errno;
		done += (size_t)more;
	}
	return 0;
}

static int first(int socket)
{
	uint64_t total = 0;

	for (int run = 1; run <= RUNS; run++) {
		uint64_t begin, ticks;
		int error;

		for (int i = 0; i < INTS; i++)
			ints[i] = run * INTS + i;
		begin = __rdtsc();
		error = send_all(socket, ints);
		if (!error)
			error = receive(socket, answer);
		ticks = __rdtsc() - begin;
		if (error)
			return error;
		for (int i = 0; i < INTS; i++)
			if (answer[i] != ints[i] + 1)
				return -EIO;
		printf("roundtrip: run %d %" PRIu64 " ticks\n", run, ticks);
		total += ticks;
	}
	printf("roundtrip: mean %" PRIu64 " ticks\n", total / RUNS);
	return 0;
}

static int second(int socket)
{
	for (int run = 1; run <= RUNS; run++) {
		int error = receive(socket, ints);

		if (error)
			return error;
		for (int i = 0; i < INTS; i++)
			ints[i]++;
		error = send_all(socket, ints);
		if (error)
			return error;
	}
	/* The first closes: so nothing is lost on the way. */
	return read(socket, ints, 1) ? -EIO : 0;
}

static int connected(const struct sockaddr_in *address)
{
	for (int try = 0; try < TRIES; try++) {
		int peer = socket(AF_INET, SOCK_STREAM, 0);

		if (!connect(peer, (const void *)address, sizeof(*address)))
			return peer;
		close(peer);
		sleep(1);
	}
	return -1;
}

static int accepted(const struct sockaddr_in *address)
{
	int door = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(door, (const void *)address, sizeof(*address)) || listen(door, 1))
		return -1;
	return accept(door, NULL, NULL);
}

int main(int count, char **words)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int peer, error, on = 1;

	if (count > 2 || (count == 2 && !inet_aton(words[1], &address.sin_addr))) {
		fprintf(stderr, "tcp-roundtrip: [ADDRESS]\n");
		return 2;
	}
	peer = count == 2 ? connected(&address) : accepted(&address);
	if (peer < 0) {
		perror("tcp-roundtrip");
		return 1;
	}
	/* Without it the last piece of a message may wait for the peer's acknowledgement. */
	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	error = count == 2 ? first(peer) : second(peer);
	if (error)
		fprintf(stderr, "tcp-roundtrip: %s\n", strerror(-error));
	close(peer);
	return error ? 1 : 0;
}
