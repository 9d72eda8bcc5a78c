// SPDX-License-Identifier: MIT
/*
 * A search tree in the region, with plain pointers that every member can follow:
 *
 *   tree build [N]    makes one of the keys 0..N, each with its square (default 1000)
 *   tree find KEY     searches it, wherever it was made
 *   tree double       doubles all values
 *   tree sum          adds all values up
 *
 * The region begins with struct head; nodes follow. All is done under the lock.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libnagaya.h"

#define ADDRESS		UINT64_C(0x4000000000)
#define MAGIC		UINT64_C(0x5445455254414741)	/* "AGATREET" */
#define FIRST_NODE	4096
/* A tree that is deeper was not made by this program: perhaps it has a circle. */
#define MOST_DEPTH	64

struct head {
	uint64_t magic;
	struct nagaya_lock lock;
	uint64_t root;		/* address of a node, 0 for none */
	uint64_t nodes;
};

struct node {
	uint64_t left;
	uint64_t right;
	uint64_t key;
	uint64_t value;
};

static struct nagaya nagaya;
static struct head *head;

static struct node *node_at(uint64_t address)
{
	return nagaya_pointer(&nagaya, address, sizeof(struct node), 8);
}

/* A balanced tree of the keys from first on; gives its root's address. */
static uint64_t build(uint64_t first, uint64_t count)
{
	uint64_t before = count / 2;
	struct node *node;

	if (!count)
		return 0;
	node = nagaya_at(&nagaya, FIRST_NODE + head->nodes * sizeof(*node),
			 sizeof(*node), 8);
	if (!node)
		return 0;
	head->nodes++;
	node->key = first + before;
	node->value = node->key * node->key;
	node->left = build(first, before);
	node->right = build(node->key + 1, count - before - 1);
	return (uintptr_t)node;
}

static int find(uint64_t key)
{
	uint64_t address = head->root;

	for (int depth = 0; address && depth < MOST_DEPTH; depth++) {
		struct node *node = node_at(address);

		if (!node)
			return -EUCLEAN;
		if (node->key == key) {
			printf("tree: %" PRIu64 " -> %" PRIu64 "\n", key, node->value);
			return 0;
		}
		address = key < node->key ? node->left : node->right;
	}
	return -ENOENT;
}

static int walk(uint64_t address, int depth, uint64_t factor, uint64_t *sum)
{
	struct node *node = node_at(address);
	int error;

	if (!address)
		return 0;
	if (!node || depth > MOST_DEPTH)
		return -EUCLEAN;
	node->value *= factor;
	*sum += node->value;
	error = walk(node->left, depth + 1, factor, sum);
	return error ? error : walk(node->right, depth + 1, factor, sum);
}

static int run(int count, char **words)
{
	uint64_t sum = 0;
	int error;

	if (!strcmp(words[1], "build")) {
		head->nodes = 0;
		head->root = build(0, count > 2 ? strtoull(words[2], NULL, 0) : 1000);
		head->magic = MAGIC;
		printf("tree: %" PRIu64 " nodes, root at %#" PRIx64 "\n", head->nodes,
		       head->root);
		return 0;
	}
	if (head->magic != MAGIC)
		return -ENOENT;
	if (!strcmp(words[1], "find") && count > 2)
		return find(strtoull(words[2], NULL, 0));
	error = walk(head->root, 0, strcmp(words[1], "double") ? 1 : 2, &sum);
	if (!error)
		printf("tree: sum %" PRIu64 "\n", sum);
	return error;
}

int main(int count, char **words)
{
	int error;

	if (count < 2) {
		fprintf(stderr, "tree: build [N] | find KEY | double | sum\n");
		return 2;
	}
	error = nagaya_open(&nagaya, ADDRESS);
	if (!error) {
		head = nagaya_at(&nagaya, 0, sizeof(*head), 8);
		error = nagaya_lock(&nagaya, &head->lock, INT64_C(10000000000));
	}
	if (error == -EOWNERDEAD) {
		fprintf(stderr, "tree: a member died while it changed the tree\n");
		head->magic = 0;
		error = 0;
	}
	if (!error) {
		error = run(count, words);
		nagaya_unlock(&nagaya, &head->lock);
	}
	if (error)
		fprintf(stderr, "tree: %s\n", strerror(-error));
	/* The region is given back when the last process leaves: stay if asked to. */
	if (getenv("STAY")) {
		fflush(stdout);
		getchar();
	}
	nagaya_close(&nagaya);
	return error ? 1 : 0;
}
