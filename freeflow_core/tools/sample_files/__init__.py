"""Samples on disk: numbered by index, written in blocks, resumable, drawn by any number of processes.

``request`` says which samples, ``writer`` leads, ``manifest`` knows what a folder holds, ``blocks`` how the indices are
cut and which blocks are finished, ``formats`` what is left in the end.
"""
