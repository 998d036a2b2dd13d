"""Kernels generated from rules.

A rule is run once on symbols (`trace`), what it computes is put into as few passes over memory as its reductions allow
(`schedule`), written out as C++ (`cpp`), compiled and kept (`build`). `native` does all this for a plan.
"""
