from daynight.cli import main

main()
