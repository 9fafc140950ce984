"""Prediction of training times on Ascend devices: counts of a graph, constants of machines, and their product."""
