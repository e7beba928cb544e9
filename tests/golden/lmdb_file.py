"""An LMDB 0.9 file read page by page in Python: an independent reader, for the tests that damage one on purpose."""

import struct

NO_PAGE = 2**64 - 1
TREE = struct.Struct("<IHHQQQQQ")
BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG, SUB = 1, 2


class Tree:
    """A tree's record: where it is stored, and what it says."""

    def __init__(self, data, at):
        self.at = at
        fields = TREE.unpack_from(data, at)
        self.pad, self.flags, self.depth, self.branch_pages, self.leaf_pages, self.overflow_pages, self.entries, self.root = fields


class File:
    """Pages in use by the last commit: `pages` {number: tree}, `overflow` {number: (tree, pages)}, `nodes` a list of
    (tree, page, offset in the file, key, value's place or overflow page, is leaf)."""

    def __init__(self, data, before=False):
        """before: of the commit before the last one, whose pages LMDB has not written over yet."""
        self.data = bytes(data)
        (self.size,) = struct.unpack_from("<I", data, 16 + 24)
        self.transactions = [self.number(page * self.size + 16 + 128) for page in (0, 1)]
        self.newest = int(self.transactions[1] > self.transactions[0])
        self.pages, self.overflow, self.nodes, self.trees = {}, {}, [], {}
        meta = (self.newest ^ before) * self.size + 16
        (self.last_page,) = struct.unpack_from("<Q", data, meta + 120)
        self.walk("(free)", Tree(data, meta + 24))
        self.walk("(main)", Tree(data, meta + 72))
        for _, _, _, key, place, _ in [n for n in self.nodes if n[0] == "(main)"]:
            self.walk(key.decode(), Tree(data, place))

    def number(self, at):
        return struct.unpack_from("<Q", self.data, at)[0]

    def walk(self, name, tree):
        self.trees[name] = tree
        if tree.root != NO_PAGE:
            self.page(name, tree.root)

    def page(self, name, number):
        at = number * self.size
        _, _, flags, lower, _ = struct.unpack_from("<QHHHH", self.data, at)
        self.pages[number] = name
        for i in range((lower - 16) // 2):
            (offset,) = struct.unpack_from("<H", self.data, at + 16 + 2 * i)
            node = at + offset
            low, high, node_flags, key_bytes = struct.unpack_from("<HHHH", self.data, node)
            key = self.data[node + 8 : node + 8 + key_bytes]
            value = node + 8 + key_bytes
            self.nodes.append((name, number, node, key, value, flags == LEAF))
            if flags == BRANCH:
                self.page(name, low | high << 16 | node_flags << 32)
            elif node_flags & BIG:
                first = self.number(value)
                (count,) = struct.unpack_from("<I", self.data, first * self.size + 12)
                self.overflow[first] = (name, count)
