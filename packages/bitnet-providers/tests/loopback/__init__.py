"""Servers on 127.0.0.1 that play the hosted APIs, and the faults that they play."""
