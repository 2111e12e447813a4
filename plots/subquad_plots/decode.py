"""Decoding: time per token against the length of the history."""

from . import time

NAME = "decode"


def applies(view):
    return view.pass_name == "decode" and (view.rows["time_s"] > 0).any()


def caption(view):
    return time.caption(view).replace("Time against sequence length",
                                      "Time per token against length of the history")


def draw(axes, view, context, exponents=True):
    drawn = time.draw(axes, view, context, exponents)
    axes.set_xlabel("length of the history n")
    return drawn
