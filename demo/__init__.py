"""The demo: a real etcd cluster under write load that moves, fails, is killed, goes back and goes on.

It asks kedge for everything through the command line, as a person would, and judges the outcome by what it can
see without kedge: the cluster's own answers, the journals on the hosts, the writes that were acknowledged.
"""
