FUTURE = False
