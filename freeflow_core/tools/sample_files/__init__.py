"""Samples on disk: numbered by index, written in blocks, resumable, drawn by any number of processes.

``writer`` leads; ``team`` is the processes, ``folder`` and ``manifest`` say what the samples are and which are there,
``blocks`` how the indices are cut, ``parts`` the finished blocks on disk, ``formats`` and ``npz`` what is left in the
end.
"""
