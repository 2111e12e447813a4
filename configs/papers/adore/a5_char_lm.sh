#!/bin/sh
# Table A5, char_lm: see a5.sh.
exec sh configs/papers/adore/a5.sh char_lm "$@"
