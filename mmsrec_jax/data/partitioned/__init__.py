"""A publisher's interactions that do not fit into memory: read, filtered and grouped by user in
partitions of users, the steps of which Apache Beam runs on this machine or on many.

`plan` says what all workers know and where they leave files to each other, `spills` cuts the
interactions into partitions, `users` cleans one, `items` numbers the items of all, `core` takes
away users and items with too few interactions, `pipeline` hands these steps to Beam, and `read`
is what `data.build` calls. The rows are those that it gives in memory.
"""
