from vtw_demo.embedded.training.command import main

main()
