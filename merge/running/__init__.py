"""Carries out tasks: the loop, the engines that run its steps, reading, memory."""
