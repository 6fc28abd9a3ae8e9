module ortolan/tests/cluster/cli

go 1.26
