"""The methods of the public client that call other endpoints than that of sending, by what they are about.

    drafts   creating, reading, changing, deleting, listing      mails      cancelling, following up, recalling
    messages   written for the server, and found again           tracking   many mails, until all are final
    base     what the methods share                              arguments  what they are given, checked

Each method checks its arguments, makes one call by `Binding.call`, and returns what the endpoint's row reads.
Where a lost reply cannot simply be asked for again, `looking` says how it goes on.
"""
