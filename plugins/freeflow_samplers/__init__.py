"""Samplers: noise to samples by a teacher's velocity, a student's flow map, or one after the other."""
